"""The state file in the hands of whoever changes the network: locked, and written before each step.

So it tells of everything that may have been done, whatever ends the process.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from netsetup.errors import AnotherInstanceError, RootNeededError, StateError
from netsetup.layout import Layout, Wanted
from netsetup.machine import boot_id
from netsetup.operations import Operation
from netsetup.state import DEFAULT_STATE, Record, encode, read_record


class Journal:
    """The state file in the hands of the one process that may change it."""

    def __init__(self, path: Path, *, made_directory: bool) -> None:
        self.path = path
        self._made_directory = made_directory
        self.record = read_record(path)
        if self.record is not None:
            self._made_directory = self.record.made_directory

    def begin(self, wanted: Wanted, layout: Layout, resolvers: tuple[str, ...], *, temporary: bool = False) -> None:
        """A new record, with nothing done."""
        self.record = Record(
            wanted, layout, resolvers, boot_id(), made_directory=self._made_directory, temporary=temporary
        )
        self._save(self.record)

    def keep(self, *, temporary: bool) -> None:
        """What is there is to stay, or not, from now on."""
        record = self._current()
        if record.temporary != temporary:
            record.temporary = temporary
            self._save(record)

    def about_to_do(self, step: Operation) -> None:
        record = self._current()
        record.operations.append(step)
        self._save(record)

    def complete(self) -> Record:
        record = self._current()
        record.complete = True
        self._save(record)
        return record

    def about_to_undo(self) -> None:
        """From now on nobody may rely on the network any more."""
        record = self._current()
        record.complete = False
        self._save(record)

    def undone(self, step: Operation) -> None:
        record = self._current()
        record.operations.remove(step)
        self._save(record)

    def end(self) -> None:
        """Nothing is left of what was done: the file goes."""
        try:
            self.path.unlink(missing_ok=True)
            self._new.unlink(missing_ok=True)
        except OSError as e:
            raise StateError(f"The state file {self.path} cannot be removed: {e.strerror}.") from e
        self.record = None

    def close(self) -> None:
        """Removes the directory that was made for the file, when nothing is in it but a file half-written."""
        if self.record is None:
            self._new.unlink(missing_ok=True)
        if self._made_directory and self.record is None and not any(self.path.parent.iterdir()):
            self.path.parent.rmdir()

    @property
    def _new(self) -> Path:
        return self.path.with_name(f".{self.path.name}.new")

    def _current(self) -> Record:
        if self.record is None:
            raise RuntimeError("nothing was begun")
        return self.record

    def _save(self, record: Record) -> None:
        try:
            self._write(encode(record))
        except OSError as e:
            raise StateError(f"The state file {self.path} cannot be written: {e.strerror}.") from e

    def _write(self, content: bytes) -> None:
        new = self._new
        new.unlink(missing_ok=True)  # of a run that was killed in here
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644), "wb") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.path)
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


@contextmanager
def open_journal(path: Path = DEFAULT_STATE) -> Iterator[Journal]:
    """Takes the state file for oneself, until the end of the block. Root only.

    Raises:
        AnotherInstanceError: somebody else has it.
        StateError: it is broken, or cannot be made.
    """
    # the default's is ours in any case, also where a run was killed just after it had made it
    made = path == DEFAULT_STATE or not path.parent.exists()
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError as e:
        raise RootNeededError(f"{path.parent} is root's.") from e
    except OSError as e:
        raise StateError(f"{path.parent} cannot be used: {e.strerror}.") from e
    try:
        try:
            # the directory, for it stays the same while the file is replaced
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise AnotherInstanceError(
                f"Another netsetup, or a kube-tunnel --virtual, has {path} in its hands. Wait for it or end it.",
                command=f"sudo fuser -v {path.parent}",
            ) from e
        if not path.parent.exists() or os.fstat(directory).st_ino != path.parent.stat().st_ino:
            raise AnotherInstanceError(f"Another netsetup has just removed {path.parent}. Try again.")
        journal = Journal(path, made_directory=made)
        try:
            yield journal
        finally:
            journal.close()
    finally:
        os.close(directory)
