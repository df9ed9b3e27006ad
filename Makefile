# make run, make test: each does all the set-up that it needs, says what it does, and then its job.
.DELETE_ON_ERROR:
.PHONY: run test check test-cluster axe bench bench-forward fmt docs dist clean help

BIN := .venv/bin
READY := .venv/.ready
ARGS ?=

help: ## what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

run: $(READY) ## the tunnel on 127.0.0.1: your current cluster, else a simulated one (ARGS='…' are its flags)
	@exec $(BIN)/python -m kubetunnel $(ARGS)

# files that have such tests, by name: to collect all of tests/ takes 9 s each time
test: $(READY) ## the tests, against the simulated cluster
	$(BIN)/pytest -m 'not cluster and not alone' -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)
	$(BIN)/pytest -m 'alone and not cluster' $(ARGS) $$(grep -rl --include='*.py' 'mark\.alone' tests)

check: $(READY) ## linters, types, import floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test-cluster: $(READY) ## the contract suite against the cluster of $KUBECONFIG
	$(BIN)/pytest -m cluster $(ARGS) tests/contract $$(grep -rl --include='*.py' --exclude-dir=contract 'mark\.cluster' tests)

axe: $(READY) ## axe-core, which looks at the dashboard in the tests (needs npm)
	npm install --silent --no-audit --no-fund --no-save --prefix .venv axe-core@4

bench: $(READY) ## the benchmarks, a minute or so (bench/README.md)
	@$(BIN)/python -m bench.http2_to_http1
	@$(BIN)/python -m bench.raw_relay
	@$(BIN)/python -m bench.dns
	@$(BIN)/python -m bench.recording
	@$(BIN)/python -m bench.cold_targets

bench-forward: $(READY) ## kubectl port-forward and ours side by side on the cluster of $KUBECONFIG, some minutes
	@$(BIN)/python -m bench.forward $(ARGS)

fmt: $(READY) ## formats the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY) ## what is made of the code: config.example.yaml, docs/settings.md, docs/api.md, docs/commands.md
	$(BIN)/kube-tunnel config --example > config.example.yaml
	$(BIN)/kube-tunnel config --reference > docs/settings.md
	$(BIN)/python scripts/api_docs.py > docs/api.md
	$(BIN)/python scripts/command_docs.py > docs/commands.md

dist: $(READY) ## the wheel and the sdist, into dist/
	$(BIN)/hatchling build --clean --directory dist

clean: ## removes what was made
	rm -rf .venv dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

# a stamp: a second `make run` must not wait for an installer
$(READY): pyproject.toml scripts/find-python
	@python=$$(scripts/find-python) || exit 1; \
	if ! [ -x $(BIN)/python ] || ! $(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then \
		echo "Set-up: making .venv with $$python"; "$$python" -m venv --clear .venv || exit 1; fi
	@echo "Set-up: installing kube-tunnel and its development tools into .venv (once; a minute or so)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable . --group dev
	@touch $(READY)
