"""What `netsetup up` has made, piece by piece: as the state file says, and as it is found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from netsetup.apply import present
from netsetup.errors import StepError
from netsetup.found import claim_on, without
from netsetup.machine import boot_id, find
from netsetup.operations import EditResolvConf, Operation, WriteFile
from netsetup.state import DEFAULT_STATE, Record, read_record


@dataclass(frozen=True, slots=True)
class Piece:
    """A step and whether what it makes is there; None where only root could tell (`why` says so)."""

    step: Operation
    found: bool | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Status:
    """What the state file says was set up, and how much of it is there.

    Attributes:
        record: None where nothing is set up.
        conflicts: who else has come into our ranges since, in words.
        outlived: as of `outlived_files`.
        whole: it is all there, so far as could be told, `up` came to its end, and nobody is in the way.
    """

    record: Record | None
    pieces: tuple[Piece, ...] = ()
    conflicts: tuple[str, ...] = ()
    outlived: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        complete = self.record is not None and self.record.complete
        return complete and not self.conflicts and all(piece.found is not False for piece in self.pieces)


def status(path: Path = DEFAULT_STATE) -> Status:
    """Looks for each piece. Needs no rights, for most of it.

    Raises:
        StateError: the state file is broken or not to be trusted.
        StepError: the kernel or a program does not tell.
    """
    record = read_record(path)
    if record is None:
        return Status(None)
    rest = without(find(), record.operations)
    claims = {prefix: claim_on(prefix, rest) for prefix in record.layout.ranges}
    conflicts = tuple(f"{prefix} is taken by {claim}" for prefix, claim in claims.items() if claim)
    return Status(record, tuple(look(step) for step in record.operations), conflicts, outlived_files(record))


def look(step: Operation) -> Piece:
    """Whether what the step makes is there."""
    try:
        return Piece(step, present(step))
    except StepError as e:
        return Piece(step, None, e.detail)


def outlived_files(record: Record) -> tuple[str, ...]:
    """The files that lead the system's resolver to our address still, though it ended when the machine was started
    again, as after a power cut. Needs no rights.
    """
    if record.boot_id == boot_id():
        return ()
    files = (step for step in record.operations if isinstance(step, EditResolvConf | WriteFile))
    return tuple(step.path for step in files if look(step).found)


def told_of_outlived(files: Sequence[str], record: Record) -> str:
    """The same in words."""
    return (
        f"The network of netsetup up ended when the machine was started again, but {record.layout.dns_address.ip} is "
        f"asked for names still ({', '.join(files)}): they come late, or not at all."
    )
