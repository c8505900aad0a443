"""How a sidecar process starts, fails to start, and stops."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from tests.support.running import running_sidecar

LISTENERS = ["websocket", "grpc", "ops"]
SIGNALLED = "tests.support.signalled_sidecar"


async def start(folder: Path, secret: str = "k" * 64, **settings: str) -> tuple[int, list[str]]:
    """Start one that must not come up: its exit code and the lines on standard error."""
    key = folder / "user.key"
    key.write_text(secret)
    key.chmod(0o600)
    environment = {f"SIDECAR_{name.upper()}__LISTEN": "127.0.0.1:0" for name in LISTENERS} | {
        "SIDECAR_USER_TOKENS__ISSUER": "https://id.test",
        "SIDECAR_USER_TOKENS__AUDIENCE": "chat",
        "SIDECAR_USER_TOKENS__KEY_FILE": str(key),
        "SIDECAR_AUDIT__PATH": str(folder / "audit.jsonl"),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "sidecar",
        "serve",
        env=os.environ | environment | settings,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode is not None
    return process.returncode, errors.decode().splitlines()


@pytest.mark.parametrize("name", LISTENERS)
async def test_a_port_in_use_is_one_line_and_exit_1(name: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        outcome = await start(tmp_path, **{f"SIDECAR_{name.upper()}__LISTEN": address})
    assert outcome == (1, [f"{name}.listen: {address} is in use"])


@pytest.mark.parametrize("name", ["websocket", "ops"])
async def test_a_host_that_is_none_is_one_line(name: str, tmp_path: Path) -> None:
    outcome = await start(tmp_path, **{f"SIDECAR_{name.upper()}__LISTEN": "nohost.invalid:0"})
    assert outcome == (1, [f"{name}.listen: nohost.invalid:0 cannot be listened on: the name is unknown"])


async def test_a_unix_socket_in_the_way_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    (folder / "grpc.sock").write_text("a plain file")
    outcome = await start(tmp_path, SIDECAR_GRPC__LISTEN=f"unix:{folder}/grpc.sock")
    assert outcome == (78, ["grpc.listen: the path of a Unix socket is taken by something else"])
    assert (folder / "grpc.sock").read_text() == "a plain file"


async def test_an_audit_trail_of_another_make_is_refused(tmp_path: Path) -> None:
    (tmp_path / "audit.jsonl").write_text("something else\n")
    code, lines = await start(tmp_path)
    assert (code, len(lines)) == (78, 1)
    assert lines[0].startswith("audit.path: ")
    assert (tmp_path / "audit.jsonl").read_text() == "something else\n"


async def test_a_refused_start_makes_no_keys(tmp_path: Path) -> None:
    code, lines = await start(tmp_path, "short", SIDECAR_CONTEXT_TOKENS__KEY_FILE=str(tmp_path / "context.keys"))
    assert (code, len(lines)) == (78, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["user.key"]


async def test_sigterm_tells_the_clients_and_ends_in_time(tmp_path: Path) -> None:
    with running_sidecar(tmp_path) as sidecar:
        async with sidecar.user("alice") as alice:
            sidecar.process.send_signal(signal.SIGTERM)
            assert (await alice.frame())["type"] == "draining"
            await alice.socket.wait_closed()
            assert (alice.socket.close_code, alice.socket.close_reason) == (1012, "restart")
        assert await asyncio.to_thread(sidecar.process.wait, 20) == 0


async def test_sigterm_while_it_starts_stops_it_as_ever(tmp_path: Path) -> None:
    with running_sidecar(tmp_path, "[drain]\nwindow_s = 600\ngrace_s = 700\n", module=SIGNALLED) as sidecar:
        assert await asyncio.to_thread(sidecar.process.wait, 20) == 0
    log = (tmp_path / "log.jsonl").read_text()
    assert [json.loads(line)["event"] for line in log.splitlines()] == ["serving", "draining", "stopped"]


async def test_a_service_calls_over_a_unix_socket(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    with running_sidecar(tmp_path, SIDECAR_GRPC__LISTEN=f"unix:{folder}/grpc.sock") as sidecar:
        async with sidecar.user("alice") as alice, sidecar.service() as service:
            assert (await service.send(alice.isolation_key, alice.context_token, b'"over unix"')).sequence == 1
            assert (await alice.frame())["data"] == "over unix"
