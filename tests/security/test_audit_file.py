"""The file under the trail: what is opened, what is refused, and that a failed write leaves nothing behind."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from sidecar.security.audit_file import AuditFile, Tail, error_name
from sidecar.security.audit_record import GENESIS, MAX_LINE_BYTES, AuditFileError, AuditFileProblem, Head, hash_of
from tests.security.audit_doubles import Disk, numbered


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def refusal_of(path: Path | str) -> tuple[AuditFileProblem, str | None]:
    before = Path(path).read_bytes() if "\0" not in str(path) and Path(path).is_file() else None
    with pytest.raises(AuditFileError) as caught:
        AuditFile.open(str(path))
    assert caught.value.__cause__ is None
    assert str(path) not in str(caught.value)
    assert before is None or Path(path).read_bytes() == before
    return caught.value.problem, caught.value.error_name


@contextmanager
def opened(path: Path, disk: Disk | None = None) -> Iterator[AuditFile]:
    with closing(AuditFile.open(str(path), (disk or Disk()).write)) as file:
        yield file


def test_a_new_file_is_private_and_has_no_record(path: Path) -> None:
    with opened(path) as file:
        assert file.tail == Tail(GENESIS, 0, 0)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_last_record_is_found(path: Path) -> None:
    lines = numbered(3)
    path.write_bytes(b"".join(lines))
    with opened(path) as file:
        assert file.tail == Tail(Head(3, hash_of(lines[2])), path.stat().st_size, 0)


def test_a_single_record_is_found(path: Path) -> None:
    lines = numbered(1)
    path.write_bytes(lines[0])
    with opened(path) as file:
        assert file.tail.head == Head(1, hash_of(lines[0]))


def test_the_last_record_of_a_long_file_is_found(path: Path) -> None:
    lines = numbered(4000)
    path.write_bytes(b"".join(lines))
    assert path.stat().st_size > 2 * MAX_LINE_BYTES
    with opened(path) as file:
        assert file.tail.head == Head(4000, hash_of(lines[-1]))


@pytest.mark.parametrize("kept", [0, 1, 2])
@pytest.mark.parametrize("torn", [1, 40, -1])
def test_a_torn_record_is_cut_off(path: Path, kept: int, torn: int) -> None:
    lines = numbered(kept + 1)
    good = b"".join(lines[:kept])
    path.write_bytes(good + lines[kept][:torn])
    with opened(path) as file:
        assert file.tail.torn_bytes == len(lines[kept][:torn])
        assert file.tail.size == len(good)
        assert file.tail.head.sequence == kept
    assert path.read_bytes() == good


@pytest.mark.parametrize("extra", [0, 1])
def test_a_torn_record_is_no_longer_than_a_record(path: Path, extra: int) -> None:
    line = numbered(1)[0]
    path.write_bytes(line + b"x" * (MAX_LINE_BYTES + extra))
    if extra:
        assert refusal_of(path) == (AuditFileProblem.BROKEN, None)
        return
    with opened(path) as file:
        assert file.tail.torn_bytes == MAX_LINE_BYTES


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"\n", id="empty line"),
        pytest.param(b"{}", id="JSON"),
        pytest.param(b"[server]", id="no newline"),
        pytest.param(b"not ours\n", id="text"),
        pytest.param(b'{"sequence":2,"boot_id":', id="torn second record alone"),
        pytest.param(b'{"sequence":1,' + b"x" * MAX_LINE_BYTES, id="too long for a torn record"),
        pytest.param(b"x" * (3 * MAX_LINE_BYTES), id="no newline for long"),
        pytest.param(b"".join(numbered(2)) + b"\n", id="empty line after records"),
        pytest.param(b"".join(numbered(2)).replace(b'"n":1', b'"n":2'), id="changed record"),
        pytest.param(b"".join(numbered(2)) + b'junk\n{"seq', id="torn after junk"),
    ],
)
def test_a_file_that_does_not_verify_is_refused_untouched(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert refusal_of(path) == (AuditFileProblem.BROKEN, None)


def test_two_never_share_a_file(path: Path) -> None:
    with opened(path):
        assert refusal_of(path) == (AuditFileProblem.IN_USE, None)
    with opened(path):
        pass


def test_what_is_not_a_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert refusal_of(tmp_path / "fifo") == (AuditFileProblem.NOT_REGULAR, None)
    assert refusal_of("/dev/null") == (AuditFileProblem.NOT_REGULAR, None)
    assert refusal_of(tmp_path) == (AuditFileProblem.CANNOT_OPEN, "EISDIR")
    assert refusal_of(tmp_path / "absent" / "x") == (AuditFileProblem.CANNOT_OPEN, "ENOENT")
    assert refusal_of("nul\0") == (AuditFileProblem.CANNOT_OPEN, None)


def test_a_link_leads_to_a_regular_file_or_nowhere(tmp_path: Path, path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("/dev/null")
    assert refusal_of(link) == (AuditFileProblem.NOT_REGULAR, None)
    link.unlink()
    link.symlink_to(path)
    assert refusal_of(link) == (AuditFileProblem.CANNOT_OPEN, "EEXIST")
    assert not path.exists()
    path.touch()
    with opened(link) as file:
        file.append(b"x")
    assert path.read_bytes() == b"x"


def test_a_refused_file_is_let_go(path: Path) -> None:
    path.write_bytes(b"not ours\n")
    before = len(os.listdir("/dev/fd"))
    for _ in range(10):
        refusal_of(path)
    assert len(os.listdir("/dev/fd")) == before


def test_short_writes_are_completed(path: Path) -> None:
    def one_byte(descriptor: int, data: memoryview) -> int:
        return os.write(descriptor, data[:1])

    with closing(AuditFile.open(str(path), one_byte)) as file:
        file.append(b"abc\n")
        file.append(b"def\n")
    assert path.read_bytes() == b"abc\ndef\n"


def test_a_failed_write_leaves_nothing_behind(path: Path) -> None:
    disk = Disk()
    with opened(path, disk) as file:
        file.append(b"abc\n")
        disk.limit = 6
        for _ in range(2):
            with pytest.raises(OSError, match="no room") as caught:
                file.append(b"def\n")
            assert error_name(caught.value) == "ENOSPC"
            assert path.read_bytes() == b"abc\n"
        disk.limit = None
        file.append(b"def\n")
    assert path.read_bytes() == b"abc\ndef\n"


def test_a_write_that_takes_nothing_is_an_error(path: Path) -> None:
    with closing(AuditFile.open(str(path), lambda _descriptor, _data: 0)) as file:
        with pytest.raises(OSError, match="nothing was written") as caught:
            file.append(b"abc\n")
        assert caught.value.errno == errno.EIO


def test_a_file_cut_from_outside_is_not_lengthened(path: Path) -> None:
    disk = Disk()
    with opened(path, disk) as file:
        file.append(b"abc\n")
        os.truncate(path, 1)
        disk.limit = 1
        with pytest.raises(OSError, match="no room"):
            file.append(b"def\n")
    assert path.read_bytes() == b"a"


def test_what_could_not_be_cut_off_is_cut_off_before_the_next_write(path: Path) -> None:
    path.write_bytes(b"abc\nde")
    descriptor = os.open(path, os.O_RDONLY)
    with closing(AuditFile(descriptor, Tail(GENESIS, 4, 2))) as file:
        for _ in range(2):
            with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):  # ftruncate(2) without the right to write
                file.append(b"def\n")
    assert path.read_bytes() == b"abc\nde"


def test_close_lets_go_though_the_flush_fails() -> None:
    reading, writing = os.pipe()
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):  # fsync(2) of a pipe
        AuditFile(writing, Tail(GENESIS, 0, 0)).close()
    assert os.read(reading, 1) == b""
    os.close(reading)


def test_an_error_without_a_number_has_a_name() -> None:
    assert error_name(OSError("no number")) == "unknown"
