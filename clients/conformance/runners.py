"""A client's runner as a process: commands in, answers out, over its standard streams."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from itertools import count
from pathlib import Path
from typing import Any

Answer = dict[str, Any]
ANSWER_TIMEOUT_S = 30.0


class RunnerGone(Exception):
    """The runner ended, or said what is no answer."""


class Runner:
    """One process. Commands are begun in the order in which they are told; `close` ends it."""

    def __init__(self, command: Sequence[str], folder: Path, errors: Path) -> None:
        with errors.open("a") as log:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                encoding="utf-8",
                env={name: value for name, value in os.environ.items() if not name.startswith("SIDECAR_")},
            )
        self._errors = errors
        self._numbers = count(1)
        self._waiting: dict[int, Future[Answer]] = {}
        self._gone = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return not self._gone

    def begin(self, do: str, **said: Any) -> Future[Answer]:
        """Tell it; the answer to come is `{"ok": ...}` or `{"error": ...}`."""
        number, answer = next(self._numbers), Future[Answer]()
        self._waiting[number] = answer
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"id": number, "do": do, "with": said}) + "\n")
            self.process.stdin.flush()
        except OSError:
            answer.set_exception(RunnerGone(self._last_words()))
        return answer

    def tell(self, do: str, **said: Any) -> Answer:
        """Tell it and wait for the answer."""
        return self.begin(do, **said).result(ANSWER_TIMEOUT_S)

    def close(self) -> None:
        """End its input, and the process if that does not. Idempotent."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
            self.process.wait(5)
        except (OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        try:
            for line in self.process.stdout:
                said = json.loads(line)
                self._waiting.pop(said["id"]).set_result(said)
        except (ValueError, KeyError, TypeError) as error:
            self._gone = f"not an answer: {type(error).__name__}"
        self._gone = self._gone or "it ended"
        for answer in list(self._waiting.values()):
            if not answer.done():
                answer.set_exception(RunnerGone(self._last_words()))

    def _last_words(self) -> str:
        return f"{self._gone or 'it ended'}: {self._errors.read_text('utf-8', errors='replace')[-2_000:]}"
