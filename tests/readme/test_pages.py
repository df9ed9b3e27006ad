"""The pages, typed from top to bottom by a reader: each command works as it stands.

What needs something special is in `special.py`; a command that is new in a page is run, and fails where it does not
work as it stands.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netsetup.private_network import why_not
from tests.readme.blocks import LANGUAGES, Command, blocks, commands
from tests.readme.reader import Reader, reader
from tests.readme.special import SPECIAL, Ends, Instead, Runs
from tests.tunnel import ROOT

FOLDERS = ("deploy", "monitoring", "certs")
PAGES = (
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / folder / "README.md" for folder in FOLDERS),
)
BLOCKS = [block for page in PAGES for block in blocks(str(page.relative_to(ROOT)), page.read_text())]
COMMANDS = [command for block in BLOCKS if block.language == "sh" for command in commands(block)]
TYPED = list(dict.fromkeys(command.page for command in COMMANDS))

CLIENTS = {"curl", "dig", "jq", "psql", "redis-cli"}
# what is of no use without one: its port, or a name that the system's resolver has to know
TO_A_TUNNEL = (
    r"(127\.0\.0\.1|localhost):8080|host\.docker\.internal"
    r"|@(10|127)\.|^(curl|grpcurl|psql|redis-cli) .*\.cluster\.local|ip addr"
)

needs_a_network = pytest.mark.skipif(bool(why_not()), reason=why_not() or "")


def special(text: str) -> Ends | Runs | Instead | None:
    return next((how for pattern, how in SPECIAL.items() if re.fullmatch(pattern, text)), None)


@pytest.fixture(scope="module")
def typist(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Typist]:
    with reader(tmp_path_factory.mktemp("reader")) as made:
        yield Typist(made)


class Typist:
    """Types the commands of pages. A server that was seen to work is started again only if something is typed to it."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self._seen: set[str] = set()
        self._waiting: str | None = None

    def type(self, command: Command) -> None:
        """What the reader does, and what has to come of it. Raises AssertionError."""
        how = special(command.text) or Ends("")
        match how:
            case Runs():
                self._waiting = command.text
                if command.text not in self._seen:
                    self._start()
                elif not how.beside:
                    self.reader.stop_tunnel()
            case Instead():
                self._expect(how.run, how.says, 0)
            case Ends():
                if how.alone:
                    self.reader.stop_tunnel()
                    self._waiting = None
                elif self.reader.tunnel is None and re.search(TO_A_TUNNEL, command.text):
                    self._waiting = self._waiting or "kube-tunnel"
                    self._start()
                self._expect(command.text, how.says, how.status)

    def _start(self) -> None:
        text, self._waiting = self._waiting, None
        assert text is not None
        how = special(text)
        assert isinstance(how, Runs)
        if not how.beside:
            self.reader.stop_tunnel()
        program = self.reader.start(how.start or text)
        try:
            program.wait_for(how.ready)
            self.reader.eventually(how.try_this, how.says)
        except BaseException:
            program.stop()
            print(program.text)
            raise
        if how.beside:
            assert program.stop() == 0, program.text
        else:
            self.reader.tunnel = program
        self._seen.add(text)

    def _expect(self, text: str, says: str, status: int) -> None:
        ended, said = self.reader.run(text)
        assert ended == status, f"exit status {ended}:\n{said}"
        assert re.search(says, said), f"{says!r} is not in:\n{said}"


@needs_a_network
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", TYPED)
def test_every_command_works(page: str, typist: Typist) -> None:
    failed, missing = [], set()
    for command in (each for each in COMMANDS if each.page == page):
        if wanted := {each for each in CLIENTS & set(shlex.split(command.text)) if shutil.which(each) is None}:
            missing |= wanted
            continue
        try:
            typist.type(command)
        except AssertionError as e:
            failed.append(f"{command}\n{e}")
    typist.reader.stop_tunnel()
    assert not failed, "\n\n".join(failed)
    if missing:
        pytest.skip(f"all works but the commands of {', '.join(sorted(missing))}, which are not installed")


def test_special_commands_are_those_of_the_pages() -> None:
    texts = [command.text for command in COMMANDS]
    unused = [pattern for pattern in SPECIAL if not any(re.fullmatch(pattern, text) for text in texts)]
    assert unused == []


def test_reasons_name_tests_that_are_there() -> None:
    reasons = " ".join(how.reason for how in SPECIAL.values() if isinstance(how, Instead))
    assert [name for name in re.findall(r"tests/\S+\.py", reasons) if not (ROOT / name).is_file()] == []


def test_every_block_says_its_language() -> None:
    assert [f"{each.page}:{each.line}" for each in BLOCKS if each.language not in LANGUAGES] == []


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_it_can_be_pasted(command: Command) -> None:
    """A shell reads it: quotes are closed, and nothing in it stands for something else."""
    assert shlex.split(command.text)
    assert not re.search(r"<[a-z-]+>|\.\.\.|…|YOUR", command.text), "a placeholder"


def headings(text: str) -> set[str]:
    """Anchors, as GitHub makes them: lower case, without punctuation, with dashes for spaces."""
    found = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize(
    "page", [*PAGES, *{*ROOT.glob("*/README.md")} - {*PAGES}], ids=lambda page: str(page.relative_to(ROOT))
)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in headings(file.read_text()), target


def test_blocks_are_found() -> None:
    """The extraction itself: continued lines, comments, a fence within a longer one."""
    text = "a\n```sh\n# say\none \\\n  two # why\n\nthree 'a#b'\n```\n````text\n```sh\nno\n```\n````\n"
    found = list(blocks("page.md", text))
    assert [block.language for block in found] == ["sh", "text"]
    assert [(each.line, each.text) for each in commands(found[0])] == [(4, "one two"), (7, "three 'a#b'")]
