"""How fast a disk says that it has what it was given."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path

SYNCED_BYTES = 40_000
"""About what a batch of a hundred messages takes in the log."""

TIMES = 50


def sync_s(folder: Path, times: int = TIMES) -> float:
    """The median of some fdatasync of 40 KB each, in seconds. Blocking."""
    data = os.urandom(SYNCED_BYTES)
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        return statistics.median([_sync_once(file.fileno(), data) for _ in range(times)])


def _sync_once(file: int, data: bytes) -> float:
    os.write(file, data)
    started = time.perf_counter()
    os.fdatasync(file)
    return time.perf_counter() - started
