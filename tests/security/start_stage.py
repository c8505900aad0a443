"""Starts of the sidecar that must not come up: good settings but for one thing, and what is left of the start."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CANARY = "canary-7f3a"
SECRET = f"{CANARY}-0123456789abcdef-0123456789abcdef"
SERVICE_TOKEN = f"{CANARY}-0123456789abcdef"

GOOD = {
    "websocket": 'listen = "127.0.0.1:0"',
    "grpc": 'listen = "127.0.0.1:0"',
    "ops": 'listen = "127.0.0.1:0"',
    "service_auth": 'token_file = "service-tokens"',
    "user_tokens": 'issuer = "https://id.test"\naudience = "chat"\nkey_file = "user.key"',
    "audit": 'path = "audit.jsonl"',
}


@dataclass(frozen=True)
class Done:
    """How a process ended."""

    code: int
    out: str
    lines: list[str]


@dataclass
class Stage:
    """A folder to start in. What a command prints goes beside it, so that the folder shows what the sidecar did."""

    folder: Path
    forker: Forker
    sections: dict[str, str] = field(default_factory=lambda: dict(GOOD))

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self.write("user.key", SECRET)
        self.write("service-tokens", SERVICE_TOKEN)

    def write(self, name: str, data: str | bytes, mode: int = 0o600) -> Path:
        """A file of the folder."""
        path = self.folder / name
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        path.chmod(mode)
        return path

    def settle(self, **sections: str) -> None:
        """The settings: the good ones, with these sections in place of theirs."""
        changed = self.sections | sections
        self.write("sidecar.toml", "".join(f"[{name}]\n{text}\n" for name, text in changed.items()))

    def run(self, *commands: tuple[str, ...], environment: Mapping[str, str] = {}) -> list[Done]:
        """Run commands to their ends, at the same time; nothing of them is left running."""
        printed = [
            [self.folder.with_suffix(f".{number}.{kind}") for kind in ("out", "err")] for number in range(len(commands))
        ]
        common = {"folder": str(self.folder), "environment": clean(environment)}
        ends = self.forker.run(
            [
                {**common, "arguments": arguments, "out": str(out), "err": str(err)}
                for arguments, (out, err) in zip(commands, printed, strict=True)
            ]
        )
        assert not any(end["survived"] for end in ends)
        done = [
            Done(end["code"], out.read_text(), err.read_text().splitlines())
            for end, (out, err) in zip(ends, printed, strict=True)
        ]
        assert CANARY not in str(done)
        return done

    def run_alone(self, *arguments: str, **environment: str) -> Done:
        """The same as `python -m sidecar`, with nothing imported before."""
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "sidecar", *arguments],
            cwd=self.folder,
            env=clean({"PYTHONPATH": str(ROOT), **environment}),
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        assert CANARY not in done.stdout + done.stderr
        return Done(done.returncode, done.stdout, done.stderr.splitlines())

    def seen(self) -> dict[str, tuple[object, ...]]:
        """All there is in the folder: names, modes, times and contents."""
        return {str(path.relative_to(self.folder)): look(path) for path in sorted(self.folder.rglob("*"))}


class Forker:
    """The forking process (forking_cli), asked a command at a time."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, commands: list[dict[str, object]]) -> list[dict[str, Any]]:
        """Run commands; of each its exit code, and whether anything of its session lives on."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(commands) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        assert isinstance(answer, list)
        return answer


@contextmanager
def forking() -> Iterator[Forker]:
    """Start the forking process; end it by closing its input."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "tests.security.forking_cli"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=clean({}),
        cwd=ROOT,
    ) as process:
        yield Forker(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=30) == 0


def clean(further: Mapping[str, str]) -> dict[str, str]:
    """This environment without settings of the sidecar, and these."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SIDECAR_")} | dict(further)


def look(path: Path) -> tuple[object, ...]:
    """What would be different had somebody touched it."""
    status = path.lstat()
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
    return status.st_mode, status.st_ino, None if path.is_dir() else status.st_mtime_ns, digest
