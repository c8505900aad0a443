"""Private files: what holds a secret is read only while nobody else can, and written whole or not at all.

Blocking; used at start-up and in methods that a caller runs in a thread. Relies on POSIX permissions and rename.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

MAX_FILE_BYTES: Final = 256 * 1024


class SettingError(Exception):
    """A setting that cannot be used: its name and the rule it breaks, never its value. At start-up: exit 78."""

    def __init__(self, setting: str, rule: str) -> None:
        super().__init__(f"{setting}: {rule}")
        self.setting = setting
        self.rule = rule


class FileStamp(NamedTuple):
    """What changes when a file, or who may read it, does."""

    mtime_ns: int
    ctime_ns: int
    inode: int
    size: int


@contextmanager
def naming(setting: str, what: str) -> Iterator[None]:
    """Turn an OSError into a SettingError that names the setting and not the path."""
    try:
        yield
    except OSError as error:
        raise SettingError(setting, f"the file cannot be {what}: {error.strerror}") from None


def stamp_of(path: Path) -> FileStamp | None:
    """The file's stamp, or None where it cannot be looked at."""
    try:
        return _stamp(path.stat())
    except OSError:
        return None


def read_file(path: Path, setting: str, *, private: bool, max_bytes: int = MAX_FILE_BYTES) -> tuple[bytes, FileStamp]:
    """Read a regular file of at most `max_bytes`; a private one only when nobody else may read it.

    The checks are made on the open file, so what was checked is what is read. Raises SettingError.
    """
    with naming(setting, "read"):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            _check(status, setting, private=private)
            with open(descriptor, "rb", closefd=False) as file:
                data = file.read(max_bytes + 1)
        finally:
            os.close(descriptor)
    if len(data) > max_bytes:
        raise SettingError(setting, f"the file must be at most {max_bytes} bytes")
    return data, _stamp(status)


def create_private(path: Path, data: bytes) -> bool:
    """Make `path`, mode 0600, complete or not at all; False when it exists already. Raises OSError."""
    temporary = _write_temporary(path, data)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    _sync_directory(path.parent)
    return True


def replace_private(path: Path, data: bytes) -> None:
    """Put `data` in the place of `path`, mode 0600, in one step that survives a crash. Raises OSError."""
    temporary = _write_temporary(path, data)
    try:
        temporary.replace(path)
    except OSError:
        temporary.unlink()
        raise
    _sync_directory(path.parent)


def append_private(path: Path, data: bytes) -> None:
    """Add to the end of a file that exists, and return once it is on the disk. Raises OSError."""
    with open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC), "ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _write_temporary(path: Path, data: bytes) -> Path:
    """Beside `path`, for a rename to be one step; O_EXCL, so that nobody can have put something there before."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink()
        raise
    return temporary


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _stamp(status: os.stat_result) -> FileStamp:
    return FileStamp(status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size)


def _check(status: os.stat_result, setting: str, *, private: bool) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise SettingError(setting, "must be a regular file")
    if private and status.st_mode & forbidden_bits(status.st_uid, os.geteuid()):
        raise SettingError(setting, "the file must not be open to group or others (mode 0600)")


def forbidden_bits(owner: int, user: int) -> int:
    """The permission bits that a private file must not have.

    A file of root's, read by another user, may be readable by its group (0640): a Kubernetes secret cannot reach a
    process that is not root in any other way. The same rule as PostgreSQL's for its server key.
    """
    return 0o037 if owner == 0 and user != 0 else 0o077
