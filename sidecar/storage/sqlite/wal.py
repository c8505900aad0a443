"""SQLite's write-ahead log: whether it is damaged in what had been synced (sqlite.org/walformat.html). Blocking.

SQLite takes a log up to the last commit before the first frame that is wrong, and forgets what stands behind without a
word. That is right where a power cut tore the last commit. But each commit is synced before the next is begun, and each
frame's checksum goes on from the one before: where a commit follows upon another behind that frame, the disk had it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

_HEADER_BYTES: Final = 32
_FRAME_HEADER_BYTES: Final = 24
_ORDERS: Final = {0x377F0682: "<", 0x377F0683: ">"}
"""Of the magic number, the order of the bytes in the words that are summed."""
_VERSION: Final = 3_007_000
_MASK: Final = 0xFFFF_FFFF

Sum = tuple[int, int]


class _Frame(NamedTuple):
    """`summed` is what its checksum is of, upon that of the frame before."""

    commits: bool
    salts: bytes
    stored: Sum
    summed: bytes


def frames_taken(index: BinaryIO) -> int:
    """How many frames SQLite has taken, read from the index of the log that it keeps while the database is open."""
    version, initialized, frames = struct.unpack("=I8xB3xI", index.read(20).ljust(20, b"\0"))
    return int(frames) if version == _VERSION and initialized else 0


def is_damaged(log: Path, page_size: int, taken: int = 0) -> bool:
    """Whether the log is damaged in what had been synced; `taken` is how many of its frames are known to be whole.

    Reads frame by frame and sums none that is known to be whole. Raises OSError.
    """
    with suppress(FileNotFoundError), log.open("rb", 1024 * 1024) as file:
        header = file.read(_HEADER_BYTES)
        if len(header) == _HEADER_BYTES:
            return _is_damaged(file, header, page_size, taken)
    return False


def _is_damaged(file: BinaryIO, header: bytes, page_size: int, taken: int) -> bool:
    order = _ORDERS.get(int.from_bytes(header[:4], "big"))
    before = _sum_of(header[24:])
    if order is not None and checksum(order, header[:24]) == before:
        if taken:
            file.seek((taken - 1) * (_FRAME_HEADER_BYTES + page_size), os.SEEK_CUR)
            before = next(_frames(file, page_size)).stored
        return _later_commit(_frames(file, page_size), order, header[16:24], before) is not None
    for each in _ORDERS.values():
        file.seek(_HEADER_BYTES)
        salts = _later_commit(_frames(file, page_size), each, None, None)
        if salts is not None:
            return not _may_be_torn(header, salts, page_size)
    return False


def checksum(order: str, data: bytes, before: Sum = (0, 0)) -> Sum:
    """The checksum of words, upon that of what stands before them."""
    first, second = before
    words = iter(struct.unpack(f"{order}{len(data) // 4}I", data))
    for even, odd in zip(words, words, strict=True):
        first = (first + even + second) & _MASK
        second = (second + odd + first) & _MASK
    return first, second


def _sum_of(data: bytes) -> Sum:
    first, second = struct.unpack(">2I", data)
    return first, second


def _frames(file: BinaryIO, page_size: int) -> Iterator[_Frame]:
    size = _FRAME_HEADER_BYTES + page_size
    while len(data := file.read(size)) == size:
        yield _Frame(any(data[4:8]), data[8:16], _sum_of(data[16:24]), data[:8] + data[_FRAME_HEADER_BYTES:])


def _later_commit(frames: Iterator[_Frame], order: str, salts: bytes | None, before: Sum | None) -> bytes | None:
    """The salts of a commit that follows upon another, the first of which SQLite would not take; None without one.

    `salts` and `before` are the log's own, None where its header is wrong: then any two frames may belong together.
    Of the first frame that is wrong both checksums are tried, the one that it has and the one that it should have.
    """
    whole = before is not None
    own, sums, commits, last = salts or b"", [before] if before else [], 0, b""
    for frame in frames:
        summed = [checksum(order, frame.summed, each) for each in sums] if frame.salts == own or whole else []
        follows = frame.stored in summed and frame.salts == own
        if not whole or not follows:
            # The end of a commit is written once more where SQLite fills a sector with it: that is no further commit.
            ends = frame.commits and frame.summed != last
            commits = commits + ends if follows else int(ends)
            if follows and commits > 1:
                return frame.salts
            own, last = salts or frame.salts, frame.summed
        sums = [frame.stored, *summed] if whole and not follows else [frame.stored]
        whole = whole and follows
    return None


def _may_be_torn(header: bytes, salts: bytes, page_size: int) -> bool:
    """Whether a wrong header can be one that a power cut left between its former state and its next.

    Written anew it has another number, other salts and another checksum, in this order, and all in the log is in the
    database. So it is damage where a field is wrong that never changes, and where the salts are those of the frames,
    or would make the checksum right.
    """
    order = _ORDERS.get(int.from_bytes(header[:4], "big"))
    if order is None or header[4:12] != struct.pack(">2I", _VERSION, page_size):
        return False
    return header[16:24] != salts and checksum(order, header[:16] + salts) != _sum_of(header[24:])
