"""Programs of Node's in processes of their own."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.running import RunningSidecar

STRICTLY = ("node", "--unhandled-rejections=strict", "--throw-deprecation")


def environment(sidecar: RunningSidecar) -> dict[str, str]:
    """Where the sidecar is, as a service is told."""
    return os.environ | {"SIDECAR_GRPC_ENDPOINT": sidecar.grpc_target, "SIDECAR_SERVICE_TOKEN": sidecar.service_token}


def output(folder: Path, sidecar: RunningSidecar, program: str, *words: str) -> str:
    """What a module that is run there prints; it must end by itself."""
    path = folder / "program.mjs"
    path.write_text(program, encoding="utf-8")
    done = subprocess.run(
        [*STRICTLY, path.name, *words],
        cwd=folder,
        env=environment(sidecar),
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@contextmanager
def running(folder: Path, sidecar: RunningSidecar, *words: str, says: str) -> Iterator[re.Match[str]]:
    """A program that says something when it serves; SIGTERM in the end, which it must obey with 0."""
    process = subprocess.Popen(
        [*STRICTLY, *words], cwd=folder, env=environment(sidecar), stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            assert process.stdout is not None
            found = re.fullmatch(says, process.stdout.readline() if says else "")
            assert found is not None
            yield found
            process.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()
