"""The file under the audit trail: opened once, locked, appended to in whole records. Blocking I/O, no threads."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Final, NamedTuple

from sidecar.security.audit_record import (
    GENESIS,
    MAX_LINE_BYTES,
    AuditFileError,
    AuditFileProblem,
    Head,
    parse_record,
)

Write = Callable[[int, memoryview], int]
"""write(2): how many bytes it took, or OSError."""

_FIRST_LINE: Final = b'{"sequence":1,'


class Tail(NamedTuple):
    """How a file ends: its last record, the bytes that are good, the bytes of a torn record after them."""

    head: Head
    size: int
    torn_bytes: int


class AuditFile:
    """One regular file that this process alone appends to, and that never keeps half a group of records."""

    def __init__(self, descriptor: int, tail: Tail, write: Write = os.write) -> None:
        self.tail = tail
        self._descriptor = descriptor
        self._size = tail.size
        self._write = write
        self._cut_needed = tail.torn_bytes > 0

    @classmethod
    def open(cls, path: str, write: Write = os.write) -> AuditFile:
        """Open or make (0600) the file, lock it, read how it ends and cut a torn record off.

        A symbolic link is followed to a regular file and to nothing else. Raises AuditFileError; the file is then as
        it was.
        """
        try:
            with ExitStack() as undo:
                descriptor = _open_or_create(path)
                undo.callback(os.close, descriptor)
                file = cls(descriptor, _locked_tail(descriptor), write)
                file._cut()
                undo.pop_all()
        except OSError as error:
            raise AuditFileError(AuditFileProblem.CANNOT_OPEN, error_name(error)) from None
        return file

    def append(self, data: bytes) -> None:
        """Write all of it, or raise OSError and leave the file as it was before."""
        try:
            self._cut()
            view = memoryview(data)
            while view:
                written = self._write(self._descriptor, view)
                if written == 0:
                    raise OSError(errno.EIO, "nothing was written")
                view = view[written:]
        except OSError:
            self._cut_needed = True
            with suppress(OSError):  # Then it is done before the next write.
                self._cut()
            raise
        self._size += len(data)

    def close(self) -> None:
        """Flush to the disk, unlock and close, whatever fails. Raises the OSError of the flush."""
        try:
            os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)

    def _cut(self) -> None:
        """Take off what a failed write left behind. A file that is shorter than it was is not ours to lengthen."""
        if self._cut_needed:
            if os.fstat(self._descriptor).st_size > self._size:
                os.ftruncate(self._descriptor, self._size)
            self._cut_needed = False


def error_name(error: OSError) -> str:
    """The errno's name: what may be told of an error whose text can hold a path."""
    return errno.errorcode.get(error.errno or 0, "unknown")


def open_regular(path: str, flags: int) -> int:
    """A descriptor of a regular file, or AuditFileError. O_NONBLOCK, so that nothing else at the path makes us wait."""
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except ValueError:  # A null character in the path.
        raise AuditFileError(AuditFileProblem.CANNOT_OPEN) from None
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise AuditFileError(AuditFileProblem.NOT_REGULAR)


def _open_or_create(path: str) -> int:
    """O_EXCL where it is new: it follows no symbolic link, so a dangling one never makes a file somewhere else."""
    flags = os.O_RDWR | os.O_APPEND
    try:
        return open_regular(path, flags)
    except FileNotFoundError:
        return open_regular(path, flags | os.O_CREAT | os.O_EXCL)


def _locked_tail(descriptor: int) -> Tail:
    """Lock first: the tail is read while nobody else can be writing."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise AuditFileError(AuditFileProblem.IN_USE) from None
    size = os.fstat(descriptor).st_size
    window = os.pread(descriptor, 2 * MAX_LINE_BYTES, max(0, size - 2 * MAX_LINE_BYTES))
    return _read_tail(window, size)


def _read_tail(window: bytes, size: int) -> Tail:
    """Find the last whole record in the file's last bytes; two longest lines fit into the window."""
    good_end = window.rfind(b"\n") + 1
    torn = window[good_end:]
    if good_end:
        line = window[window.rfind(b"\n", 0, good_end - 1) + 1 : good_end - 1]
        link = parse_record(line)
        if link is not None and len(torn) <= MAX_LINE_BYTES:
            return Tail(link.head, size - len(torn), len(torn))
    elif len(window) == size and _is_torn_first_record(torn):
        return Tail(GENESIS, 0, size)
    raise AuditFileError(AuditFileProblem.BROKEN)


def _is_torn_first_record(torn: bytes) -> bool:
    """An empty file, or the beginning of our first record: any other file without a newline is somebody else's."""
    return len(torn) <= MAX_LINE_BYTES and torn[: len(_FIRST_LINE)] == _FIRST_LINE[: len(torn)]
