"""Private files: who may read them, and that they are written whole or not at all."""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sidecar.security.files import (
    SettingError,
    append_private,
    create_private,
    forbidden_bits,
    naming,
    read_file,
    replace_private,
    stamp_of,
)


def rule_of(path: Path, *, private: bool = True, max_bytes: int = 100) -> str:
    with pytest.raises(SettingError) as caught:
        read_file(path, "x.key_file", private=private, max_bytes=max_bytes)
    assert caught.value.setting == "x.key_file"
    assert str(caught.value) == f"x.key_file: {caught.value.rule}"
    assert str(path) not in str(caught.value)
    return caught.value.rule


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def written(path: Path, data: bytes, mode: int) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o644, 0o660, 0o601, 0o610])
def test_a_private_file_that_others_may_touch_is_refused(tmp_path: Path, mode: int) -> None:
    path = written(tmp_path / "key", b"secret", mode)
    assert rule_of(path) == "the file must not be open to group or others (mode 0600)"
    assert read_file(path, "x", private=False)[0] == b"secret"


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_private_file_of_ones_own_is_read(tmp_path: Path, mode: int) -> None:
    path = written(tmp_path / "key", b"secret", mode)
    data, stamp = read_file(path, "x", private=True)
    assert data == b"secret"
    assert stamp == stamp_of(path)


def test_a_file_of_roots_may_be_read_by_the_group_of_another_user() -> None:
    assert forbidden_bits(owner=0, user=1000) == 0o037
    assert forbidden_bits(owner=0, user=0) == 0o077
    assert forbidden_bits(owner=1000, user=1000) == 0o077
    assert forbidden_bits(owner=1000, user=0) == 0o077


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    assert rule_of(tmp_path) == "must be a regular file"
    assert rule_of(tmp_path / "fifo") == "must be a regular file"
    assert rule_of(tmp_path / "absent") == "the file cannot be read: No such file or directory"


def test_a_file_has_a_limit(tmp_path: Path) -> None:
    path = written(tmp_path / "key", b"x" * 100, 0o600)
    assert len(read_file(path, "x", private=True, max_bytes=100)[0]) == 100
    assert rule_of(path, max_bytes=99) == "the file must be at most 99 bytes"


def test_the_stamp_tells_a_changed_file_and_an_absent_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert stamp_of(path) is None
    path.write_bytes(b"1")
    first = stamp_of(path)
    replace_private(path, b"2")
    assert stamp_of(path) not in {first, None}


def test_create_makes_a_private_file_once(tmp_path: Path) -> None:
    path = tmp_path / "key"
    assert create_private(path, b"first") is True
    assert create_private(path, b"second") is False
    assert (path.read_bytes(), mode_of(path)) == (b"first", 0o600)
    assert list(tmp_path.iterdir()) == [path]


def test_replace_puts_a_private_file_in_the_place(tmp_path: Path) -> None:
    path = written(tmp_path / "key", b"old", 0o644)
    replace_private(path, b"new")
    assert (path.read_bytes(), mode_of(path)) == (b"new", 0o600)
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="directory"):
        replace_private(tmp_path / "taken", b"new")
    with pytest.raises(OSError, match="No such file"):
        create_private(tmp_path / "absent" / "key", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@contextmanager
def no_room() -> Iterator[None]:
    """A disk that takes nothing: files of this process may not grow (EFBIG; the signal is ignored by Python)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    with no_room(), pytest.raises(OSError, match="File too large"):
        create_private(tmp_path / "key", b"new")
    assert list(tmp_path.iterdir()) == []


def test_append_adds_to_the_end_and_makes_no_file(tmp_path: Path) -> None:
    path = written(tmp_path / "list", b"1\n", 0o600)
    append_private(path, b"2\n")
    assert path.read_bytes() == b"1\n2\n"
    with pytest.raises(FileNotFoundError):
        append_private(tmp_path / "absent", b"2\n")


def test_an_os_error_is_named_by_its_setting() -> None:
    with pytest.raises(SettingError) as caught, naming("a.b", "written"):
        raise OSError(13, "Permission denied", "/some/path")
    assert str(caught.value) == "a.b: the file cannot be written: Permission denied"
