"""A running `sidecar serve --dev` on free ports, by what it prints."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.request import Request, urlopen

ROOT = Path(__file__).resolve().parents[2]


class DevelopmentMode(NamedTuple):
    """What it printed, by its names."""

    addresses: dict[str, str]

    def post(self, path: str, members: dict[str, str]) -> dict[str, str]:
        """Ask as the page does."""
        origin = self.addresses["open"].rstrip("/")
        headers = {"Content-Type": "application/json", "Origin": origin}
        with urlopen(Request(origin + path, json.dumps(members).encode(), headers), timeout=10) as answer:
            answered = json.load(answer)
        assert isinstance(answered, dict)
        return answered


@contextmanager
def development_mode(command: Sequence[str]) -> Iterator[DevelopmentMode]:
    """What that command starts."""
    free = {f"SIDECAR_{name}__LISTEN": "127.0.0.1:0" for name in ("WEBSOCKET", "GRPC", "OPS")}
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | free, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    addresses = {}
    try:
        for line in process.stdout:
            name, _, address = line.strip().rpartition(" ")
            addresses[name] = address
            if name == "service token":
                break
        yield DevelopmentMode(addresses)
    finally:
        process.terminate()
        assert process.wait(30) == 0
        process.stdout.close()
