"""The small examples, run as their readers run them, against a real sidecar."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

from tests.support.running import running_sidecar

EXAMPLES = Path(__file__).parents[2] / "examples"


async def run_example(name: str, *arguments: str, **environment: str) -> tuple[int | None, str, str]:
    """Run it to its end: exit code, output, errors."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, EXAMPLES / name, *arguments, stdout=PIPE, stderr=PIPE, env=os.environ | environment
    )
    output, errors = await asyncio.wait_for(process.communicate(), 30)
    return process.returncode, output.decode(), errors.decode()


async def test_sends_from_python(tmp_path: Path) -> None:
    with running_sidecar(tmp_path) as sidecar:
        async with sidecar.user("alice") as alice:
            service = {"CONTEXT_TOKEN": alice.context_token, "SIDECAR_GRPC_ENDPOINT": sidecar.grpc_target}
            code, output, _ = await run_example("send_from_python.py", "alice", "hello", **service)
            assert (code, "sequence: 1\n" in output) == (0, True)
            frame = await alice.frame()
            assert (frame["event"], frame["data"]) == ("greeting", {"text": "hello"})
            code, output, errors = await run_example("send_from_python.py", "mallory", "hello", **service)
            assert (code, output) == (1, "")
            assert "StatusCode.PERMISSION_DENIED" in errors
            assert await alice.frames_before_answer_to("probe") == []
