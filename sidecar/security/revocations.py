"""Which token families were taken back, remembered until the last token of each has ended anyway.

`add`, `in` and `prune` decide in memory and hold at once; `flush` makes what they decided last, blocking, for a thread.
The file is JSON lines, one family each; only what is still needed is kept in it.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Final

from sidecar.core.errors import ErrorReason, ResourceExhausted, Unavailable
from sidecar.core.identity import IDENTIFIER
from sidecar.security.files import SettingError, append_private, create_private, naming, read_file, replace_private
from sidecar.security.jose import MAX_INTEGER
from sidecar.security.strict_json import parse_object

MAX_ENTRIES: Final = 100_000
MAX_REVOCATION_FILE_BYTES: Final = 64 * 1024 * 1024
RETRY_WHEN_FULL_S: Final = 60.0
SLACK_LINES: Final = 1_000


class RevocationList:
    """Revoked families and until when (Unix seconds). `path` None keeps them in memory only.

    Memory belongs to one thread (the loop's); `flush` may run on any other, and several at once.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        now: float = 0.0,
        max_entries: int = MAX_ENTRIES,
        setting: str = "context_tokens.revocation_file",
    ) -> None:
        """Load what is still needed at `now` (Unix seconds) and make the file small again. Blocking.

        Raises SettingError: a damaged file would let revoked tokens live.
        """
        self._path = path
        self._max_entries = max_entries
        self._until: dict[str, int] = {}
        self._pending: list[str] = []
        self._file_lines = 0
        self._rewrite = False
        self._memory = threading.Lock()
        self._disk = threading.Lock()
        if path is not None:
            self._load(path, now, setting)

    def __contains__(self, family: str) -> bool:
        return family in self._until

    def __len__(self) -> int:
        return len(self._until)

    def add(self, family: str, until: int) -> None:
        """Revoke a family at once; `flush` makes it last. Idempotent; the later `until` counts.

        Raises ResourceExhausted (RATE_LIMITED) when the list is full: then nothing was changed.
        """
        if self._until.get(family, -1) >= until:
            return
        if family not in self._until and len(self._until) >= self._max_entries:
            raise ResourceExhausted(ErrorReason.RATE_LIMITED, retry_after_s=RETRY_WHEN_FULL_S)
        with self._memory:
            self._until[family] = until
            if self._path is not None:
                self._pending.append(_line(family, until))

    def discard(self, family: str) -> None:
        """Forget a family whose context has ended: its tokens open nothing any more. Idempotent."""
        with self._memory:
            self._until.pop(family, None)

    def prune(self, now: float) -> None:
        """Forget the families whose last token has ended."""
        with self._memory:
            self._until = {family: until for family, until in self._until.items() if until > now}

    def flush(self) -> None:
        """Bring the file up to memory; on return it is on the disk. Blocking, idempotent.

        Raises Unavailable (STORAGE_UNAVAILABLE) when it cannot: memory still holds, and the next flush writes all anew.
        """
        if self._path is None:
            return
        with self._disk:
            try:
                self._write(self._path)
            except OSError:
                self._rewrite = True
                raise Unavailable(ErrorReason.STORAGE_UNAVAILABLE) from None

    def _write(self, path: Path) -> None:
        """Add what is new, or replace the file where it is damaged or mostly holds what is over."""
        with self._memory:
            lines, self._pending = self._pending, []
            rewrite = self._rewrite or self._file_lines + len(lines) > 2 * len(self._until) + SLACK_LINES
            if rewrite:
                lines = [_line(family, until) for family, until in self._until.items()]
        if rewrite:
            replace_private(path, "".join(lines).encode("ascii"))
            self._rewrite, self._file_lines = False, len(lines)
        elif lines:
            append_private(path, "".join(lines).encode("ascii"))
            self._file_lines += len(lines)

    def _load(self, path: Path, now: float, setting: str) -> None:
        with naming(setting, "written"):
            if not path.exists() and create_private(path, b""):
                return
        data, _ = read_file(path, setting, private=True, max_bytes=MAX_REVOCATION_FILE_BYTES)
        self._read_lines(data, setting)
        self.prune(now)
        if len(self._until) > self._max_entries:
            raise SettingError(setting, f"must hold at most {self._max_entries} families that are still needed")
        self._rewrite = self._file_lines != len(self._until) or data[-1:] not in {b"", b"\n"}
        with naming(setting, "written"):
            self._write(path)

    def _read_lines(self, data: bytes, setting: str) -> None:
        """A last line without its end was never confirmed to anybody (the process died in it): it is left out."""
        lines = data.split(b"\n")[:-1]
        for number, line in enumerate(lines, start=1):
            try:
                family, until = _entry(line)
            except ValueError:
                raise SettingError(setting, f"line {number} must be a revocation that the sidecar wrote") from None
            self._until[family] = max(until, self._until.get(family, 0))
        self._file_lines = len(lines)


def _line(family: str, until: int) -> str:
    return json.dumps({"family": family, "until": until}, separators=(",", ":")) + "\n"


def _entry(line: bytes) -> tuple[str, int]:
    entry = parse_object(line)
    family, until = entry.get("family"), entry.get("until")
    if not isinstance(family, str) or IDENTIFIER.fullmatch(family) is None:
        raise ValueError("not a family")
    if type(until) is not int or not 0 <= until <= MAX_INTEGER:
        raise ValueError("not a time")
    return family, until
