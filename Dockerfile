# The tunnel in a container: not root, no shell needed, all of its files read-only but its home directory.
#   docker build -t kube-tunnel .
#   docker run --rm --read-only --tmpfs /tmp -p 127.0.0.1:8080:8080 \
#     -v ~/.kube/config:/etc/kube-tunnel/kubeconfig:ro -e KUBECONFIG=/etc/kube-tunnel/kubeconfig kube-tunnel
# Who reaches the port uses the cluster with your rights: publish it on 127.0.0.1, or ask for credentials (deploy/).
ARG PYTHON_IMAGE=python:3.13-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY addons addons
COPY netsetup netsetup
# pip stays outside, and the byte code is made here: nothing can write it later
RUN python -m venv --without-pip /opt/kube-tunnel \
    && pip --python /opt/kube-tunnel/bin/python install --no-cache-dir --disable-pip-version-check .

FROM ${PYTHON_IMAGE}
COPY --from=build /opt/kube-tunnel /opt/kube-tunnel
RUN install -d -o 65532 -g 65532 -m 0700 /var/lib/kube-tunnel
ENV PATH=/opt/kube-tunnel/bin:$PATH \
    HOME=/var/lib/kube-tunnel \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
# of the CA's key and of recorded flows; a number, so that Kubernetes sees that it is not root
USER 65532:65532
WORKDIR /var/lib/kube-tunnel
VOLUME /var/lib/kube-tunnel
EXPOSE 8080
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s --retries=3 \
    CMD ["python", "-c", "from urllib import request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:8080/health', timeout=3)"]
# SIGTERM ends it in order, also as process 1
STOPSIGNAL SIGTERM
ENTRYPOINT ["kube-tunnel"]
CMD ["--port=8080", "--", "--listen-host=0.0.0.0"]
