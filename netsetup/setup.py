"""Sets the machine's network up for the tunnel and puts it back: all of it or nothing, whatever happens in between.

Both need root (CAP_NET_ADMIN, and to write the resolver's files and the state file), take well under a second, and
block: call them outside an event loop, or in a thread. They read no kubeconfig and run no credential plugin.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from netsetup.apply import apply, undo
from netsetup.errors import NetsetupError, SetUpOtherwiseError, StateError, StepError
from netsetup.found import Found, without
from netsetup.journal import Journal, open_journal
from netsetup.layout import Wanted, choose_layout
from netsetup.machine import boot_id, find
from netsetup.plan import notes, plan
from netsetup.privileges import as_root
from netsetup.state import DEFAULT_STATE, Record, State, read_record
from netsetup.status import look
from netsetup.way_out import left_behind, our_links

type Tell = Callable[[str], None]


def up(wanted: Wanted, path: Path = DEFAULT_STATE, *, tell: Tell = lambda _: None) -> State:
    """Makes the network as wanted. Twice is once; what an earlier run has left or made otherwise is undone first.

    Args:
        tell: is given a line for each thing done.

    Raises:
        AnotherInstanceError, StateError, RootNeededError: the state file cannot be had, or is lost.
        BadWishError, RangeTakenError, LinkTakenError: it cannot be as wanted; nothing was changed.
        StepError: a step failed; what was done before it is undone.
    """
    with open_journal(path) as journal:
        return _up(wanted, journal, _unfailing(tell))


def down(path: Path = DEFAULT_STATE, *, tell: Tell = lambda _: None) -> bool:
    """Undoes exactly what `up` did, also where it was killed or the machine started again since; False: nothing to do.

    Raises:
        AnotherInstanceError, StateError, RootNeededError: as `up`.
        StepError: a step could not be undone. The others are; the state file remains for another try.
    """
    with open_journal(path) as journal:
        if journal.record is None:
            if (lost := left_behind(path)) is not None:
                raise lost
            return False
        _undo_all(journal, _unfailing(tell))
        return True


@contextmanager
def network(wanted: Wanted, path: Path = DEFAULT_STATE, *, tell: Tell = lambda _: None) -> Iterator[State]:
    """`up` for the time of a block, `down` after it; no other netsetup can come between. Errors as theirs.

    What `up` has set up before is somebody's own: it is used as it is, and stays.

    Raises:
        SetUpOtherwiseError: it is there, but not as wanted.
    """
    tell = _unfailing(tell)
    with open_journal(path) as journal:
        kept = _kept(wanted, journal.record)
        if kept is None:
            state = _up(wanted, journal, tell, temporary=True)
            try:
                yield state
            finally:
                _undo_all(journal, tell)
    if kept is not None:
        tell("the network is set up already (netsetup up): it is used, and left as it is")
        yield kept


def dry_run(wanted: Wanted, path: Path = DEFAULT_STATE) -> list[str]:
    """The lines that tell what `up` would do. Needs no rights. Errors as `up`."""
    record = read_record(path)
    found = find()
    if record is not None:
        if _is_as_wanted(record, wanted, found):
            return ["nothing: it is up as wanted"]
        found = without(found, record.operations)
    else:
        _check_nothing_is_lost(path)
    layout = choose_layout(wanted, found)
    undone = [f"- {step.text}" for step in reversed(record.operations)] if record else []
    done = [f"+ {step.text}" for step in plan(wanted, layout, found)]
    return [*(f"note: {why}" for why in notes(wanted, layout, found)), *undone, *done]


def dry_run_down(path: Path = DEFAULT_STATE) -> list[str]:
    """The lines that tell what `down` would undo, none where there is nothing. Needs no rights. Errors as `down`."""
    record = read_record(path)
    return [f"- {step.text}" for step in reversed(record.operations)] if record else []


def _up(wanted: Wanted, journal: Journal, tell: Tell, *, temporary: bool = False) -> State:
    found = find()
    if journal.record is not None:
        if _is_as_wanted(journal.record, wanted, found):
            journal.keep(temporary=temporary)
            tell("it is up as wanted already")
            return journal.record.state
        # before anything is touched: a wish that cannot be had leaves what there is
        rest = without(found, journal.record.operations)
        plan(wanted, choose_layout(wanted, rest), rest)
        _undo_all(journal, tell)
        found = find()
    else:
        _check_nothing_is_lost(journal.path)
    layout = choose_layout(wanted, found)
    steps = plan(wanted, layout, found)
    for why in notes(wanted, layout, found):
        tell(f"note: {why}")
    journal.begin(wanted, layout, found.resolver.servers, temporary=temporary)
    record = None
    try:
        for step in steps:
            journal.about_to_do(step)
            apply(step)
            tell(f"+ {step.text}")
        record = journal.complete()
    except NetsetupError as e:
        tell(f"! {e.detail}")
        raise
    finally:
        if record is None:
            # also on Ctrl-C
            _undo_all(journal, tell)
    return record.state


def _check_nothing_is_lost(path: Path) -> None:
    """Links of ours without a record are in the way; a line in resolv.conf alone is not, and goes with the next one."""
    if our_links() and (lost := left_behind(path)) is not None:
        raise lost


def _undo_all(journal: Journal, tell: Tell) -> None:
    """Backwards, each step whatever became of the others; Ctrl-C has to wait."""
    if journal.record is None:
        return
    failed: list[NetsetupError] = []
    with _undisturbed():
        # on a full disk nothing can be written down: no reason to leave a machine without DNS
        with suppress(StateError):
            journal.about_to_undo()
        for step in reversed(tuple(journal.record.operations)):
            try:
                tell(f"- {undo(step)}")
            except NetsetupError as e:
                failed.append(e)
                tell(f"! {step.text}: {e.detail}")
                continue
            with suppress(StateError):
                journal.undone(step)
        if not failed:
            journal.end()
    if failed:
        raise StepError(
            f"Not everything could be undone: {'; '.join(dict.fromkeys(e.detail for e in failed))}",
            command=as_root("netsetup", "down"),
        )


def _is_as_wanted(record: Record, wanted: Wanted, found: Found) -> bool:
    """Whether an earlier run made this, in this boot, all of it is still there, and nobody else in its ranges."""
    if not record.complete or record.wanted != wanted or record.boot_id != boot_id():
        return False
    rest = without(found, record.operations)
    try:
        layout = choose_layout(wanted, rest)
    except NetsetupError:
        return False
    # a range that has become free since is no reason to give all names new addresses
    return {*record.layout.ranges} <= {*layout.ranges} and all(
        look(step).found is not False for step in record.operations
    )


def _kept(wanted: Wanted, record: Record | None) -> State | None:
    """The network that `up` has made in this boot, where it is to stay; None where there is none."""
    if record is None or record.temporary or not record.complete or record.boot_id != boot_id():
        return None
    differences = differing(replace(record.wanted, dns_port=record.layout.dns_port), wanted)
    differences += [f"{piece.step.text} is missing" for piece in map(look, record.operations) if piece.found is False]
    if differences:
        raise SetUpOtherwiseError(
            f"The network is set up already (netsetup up), and not as wanted here: {'; '.join(differences)}. Set it "
            "up again with these options, or take it down.",
            command=as_root("netsetup", "down"),
        )
    return record.state


def differing(has: Wanted, wanted: Wanted) -> list[str]:
    """What a tunnel that wants this would miss where the other was made. But for ports, a default is no wish."""
    plain = Wanted()
    differences = [
        f"{what} {_words(name, getattr(has, name))}, not {_words(name, getattr(wanted, name))}"
        for name, what in _WISHES.items()
        if getattr(wanted, name) != getattr(has, name)
        and (name in ("port", "dns_port") or getattr(wanted, name) != getattr(plain, name))
    ]
    missing = [zone for zone in wanted.zones if zone not in has.zones]
    return differences + ([f"the zone {', '.join(missing)} is not among its own"] if missing else [])


_WISHES = {
    "port": "the tunnel's port is", "dns_port": "the DNS server's port is", "dns_ip": "the DNS address is",
    "proxy_ip": "the proxy's address is", "ip_ranges": "the ranges are", "dns_link": "the DNS link is",
    "proxy_link": "the proxy's link is", "search": "the Namespace that is searched is",
}  # fmt: skip


def _words(name: str, value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if value is None:
        return "none" if name == "search" else "chosen by itself"
    return str(value)


def _unfailing(tell: Tell) -> Tell:
    """What is told may go to a terminal or a pipe that is gone: no reason to stop half-way."""

    def told(line: str) -> None:
        with suppress(OSError):
            tell(line)

    return told


@contextmanager
def _undisturbed() -> Iterator[None]:
    held = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
