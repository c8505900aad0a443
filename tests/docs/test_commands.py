"""Every block of README.md and docs/ runs here, or in the test of its page; a block that nothing runs fails."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.request import urlopen

import grpc
import pytest
from websockets.asyncio.client import connect

from sidecar.api.v1 import delivery_service_pb2, delivery_service_pb2_grpc, types_pb2
from tests.docs.pages import PAGES, ROOT, Block, blocks, make_targets
from tests.docs.stage import Stage, stage
from tests.support.development_mode import DevelopmentMode, development_mode
from tests.support.running import RunningSidecar, User

README: Final = ROOT / "README.md"
GRPC_ADDRESS: Final = "127.0.0.1:50051"
OF_ITS_PAGE: Final = {
    ("docs/protocol.md", "json"),
    ("docs/protocol.md", "http"),
    ("docs/security.md", "json"),
    ("docs/kubernetes.md", "yaml"),
    ("docs/migration.md", "python"),
}
"""Pages and languages that test_protocol_page.py, test_security_page.py, test_kubernetes_page.py and, of the Python
client, test_migration.py read."""
NO_COMMANDS: Final = {"", "text"}
"""Pictures, and what a program printed."""


def commands(block: Block) -> list[str]:
    """One a line, continuations joined, comments left out."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [command for line in lines if (command := re.sub(r"(^| )#.*$", "", line).strip())]


def block_id(block: Block) -> str:
    return block.name


def is_of_its_page(block: Block) -> bool:
    """Whether the test of its page runs it."""
    return (str(block.page.relative_to(ROOT)), block.language) in OF_ITS_PAGE


def settings_for(block: Block) -> Block | None:
    """The settings that the commands of a block are meant for: the nearest before it on its page, else the next."""
    candidates = blocks("toml", pages=(block.page,))
    before = [each for each in candidates if each.line < block.line]
    return next(iter(before[-1:] + candidates[:1]), None)


@pytest.mark.parametrize("block", blocks(), ids=block_id)
def test_something_runs_every_block(block: Block) -> None:
    if block.language == "sh":
        assert all(runner_of(command, block) for command in commands(block))
    elif block.language == "python":
        assert is_of_its_page(block) or function_of(block) in PYTHON
    else:
        assert block.language in NO_COMMANDS | {"toml"} or is_of_its_page(block)
        assert "\n$ " not in f"\n{block.text}"


def runner_of(command: str, block: Block) -> str | None:
    """Who runs a command: the tests below, by name."""
    if command.startswith("make "):
        return "make"
    if command.startswith("grpcurl "):
        return "grpcurl"
    if command.startswith((".venv/bin/sidecar ", "install ", "tail ")) and settings_for(block) is not None:
        return "stage"
    return None


def run_by(runner: str) -> list[tuple[Block, str]]:
    return [(block, each) for block in blocks("sh") for each in commands(block) if runner_of(each, block) == runner]


# make


@pytest.mark.parametrize("command", sorted({command for _, command in run_by("make")}))
def test_make_knows_the_target(command: str) -> None:
    assert shlex.split(command)[1] in make_targets()
    assert dry_run(command)


def dry_run(command: str) -> list[str]:
    """What make would run: also where these tests are run by make themselves, which tells a make below it so."""
    environment = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MAKELEVEL", "ARGS"}}
    arguments = ["make", "--dry-run", "--no-print-directory", *shlex.split(command)[1:]]
    done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def development() -> Iterator[DevelopmentMode]:
    """What the last line of `make run` starts, on free ports."""
    command = dry_run("make run")[-1].replace(".venv/bin/", f"{Path(sys.executable).parent}/").split()
    with development_mode(command) as running:
        yield running


def test_make_run_prints_the_page_to_open(development: DevelopmentMode) -> None:
    with urlopen(development.addresses["open"], timeout=10) as answer:
        assert answer.headers.get_content_type() == "text/html"
        assert b"<title>ws-sidecar demo</title>" in answer.read()


@pytest.mark.parametrize("command", [command for _, command in run_by("grpcurl")])
async def test_grpcurl_sends_to_a_user(command: str, development: DevelopmentMode) -> None:
    if shutil.which("grpcurl") is None:
        pytest.skip("no grpcurl")
    minted = await asyncio.to_thread(development.post, "/dev/token", {"sub": "alice"})
    async with connect(development.addresses["websocket"], subprotocols=["sidecar.v1.json"]) as socket:  # type: ignore[list-item]
        await socket.send(json.dumps({"type": "hello", "token": minted["token"]}))
        alice = User("alice", socket, json.loads(await socket.recv()))
        environment = os.environ | {"TOKEN": alice.context_token, "KEY": alice.isolation_key}
        process = await asyncio.create_subprocess_shell(
            command.replace(GRPC_ADDRESS, development.addresses["grpc"]), stdout=subprocess.PIPE, env=environment
        )
        output, _ = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == 0
        receipt = json.loads(output)["receipt"]
        assert (receipt["sequence"], receipt["state"]) == ("1", "DELIVERY_STATE_WRITTEN")
        assert (await alice.frame())["data"] == {"hello": 1}


# Settings, and the commands that belong to them


@pytest.mark.parametrize("settings", blocks("toml"), ids=block_id)
async def test_the_settings_start_a_sidecar_and_their_commands_run(settings: Block) -> None:
    """In a short path of its own: a Unix socket's may have 107 bytes."""
    mine = [each for each in run_by("stage") if settings_for(each[0]) == settings]
    line = next((each.text for each in blocks("json", pages=(settings.page,)) if '"allow"' in each.text), None)
    with tempfile.TemporaryDirectory(prefix="docs-") as folder:
        async with stage(Path(folder), settings.text, line) as scene:
            for _, command in mine:
                await runs(command, scene)
            if not scene.serving:
                await scene.serve()


async def runs(command: str, scene: Stage) -> None:
    if " serve " in command:
        await scene.serve(command)
        return
    if re.search(r" (health|audit verify|token user) ", command) and not scene.serving:
        await scene.serve()  # it asks one that runs, or reads what one wrote
    outcome = await scene.run(command)
    assert (outcome.code, outcome.errors) == (0, "")
    if " health " in command:
        assert outcome.output == "ready\n"
    if " audit verify " in command:
        assert re.fullmatch(r"ok: \d+ records, head \d+ [0-9a-f]{64}\n", outcome.output)
    if " token user " in command:
        async with connect(scene.websocket_url, subprotocols=["sidecar.v1.json"]) as socket:  # type: ignore[list-item]
            await socket.send(json.dumps({"type": "hello", "token": outcome.output.strip()}))
            assert json.loads(await socket.recv())["type"] == "welcome"


# Python


def function_of(block: Block) -> str:
    """The one function that a block defines: by it the block's test is found."""
    (name,) = re.findall(r"^(?:async )?def (\w+)", block.text, flags=re.MULTILINE)
    return str(name)


def names_of(block: Block, target: str = "") -> dict[str, Any]:
    """What the block defines; its sidecar is at `target`."""
    names: dict[str, Any] = {}
    exec(compile(block.text.replace(GRPC_ADDRESS, target), block.name, "exec"), names)
    return names


async def sends(block: Block, sidecar: RunningSidecar) -> None:
    names = names_of(block, sidecar.grpc_target)
    send: Callable[..., types_pb2.Receipt] = names["send"]
    async with sidecar.user("alice") as alice:
        own = (alice.isolation_key, alice.context_token)
        receipt = await asyncio.to_thread(send, *own, "alice", b'{"text": "hello"}')
        assert receipt.sequence == 1
        frame = await alice.frame()
        assert (frame["event"], frame["data"]) == ("answer", {"text": "hello"})
        with pytest.raises(grpc.RpcError):
            await asyncio.to_thread(send, *own, "mallory", b"1")
        assert await alice.frames_before_answer_to("probe") == []
    names["channel"].close()


async def explains(block: Block, sidecar: RunningSidecar) -> None:
    why = names_of(block)["why"]
    async with sidecar.user("alice") as alice:
        await asyncio.to_thread(asks, sidecar.grpc_target, alice, why)


def asks(target: str, alice: User, why: Callable[[grpc.RpcError], tuple[str, float | None]]) -> None:
    """With a wrong key, then for what the client has yet to acknowledge: a megabyte of critical events."""
    large = types_pb2.Message(payload=b'"%b"' % (b"x" * 260_000), critical=True)
    with grpc.insecure_channel(target) as channel:
        send = delivery_service_pb2_grpc.DeliveryServiceStub(channel).SendToUser

        def outcomes(isolation_key: str, times: int) -> Iterator[tuple[str, float | None]]:
            request = delivery_service_pb2.SendToUserRequest(isolation_key=isolation_key, message=large)
            for _ in range(times):
                try:
                    send(request, metadata=(("x-context-token", alice.context_token),), timeout=10)
                except grpc.RpcError as error:
                    yield why(error)

        assert list(outcomes("0" * 64, 1)) == [("ISOLATION_VIOLATION", None)]
        assert list(outcomes(alice.isolation_key, 6)) == [("OUTBOX_FULL", 1.0)] * 2


async def elsewhere(block: Block, sidecar: RunningSidecar) -> None:
    """The whole client: test_protocol_page.py runs it."""
    assert block.page.name == "protocol.md"


PYTHON: Final[dict[str, Callable[[Block, RunningSidecar], Awaitable[None]]]] = {
    "send": sends,
    "why": explains,
    "listen": elsewhere,
}


@pytest.mark.parametrize("block", [each for each in blocks("python") if not is_of_its_page(each)], ids=block_id)
async def test_the_python_does_what_it_says(block: Block, sidecar: RunningSidecar) -> None:
    await PYTHON[function_of(block)](block, sidecar)


def test_the_pages_were_found() -> None:
    names = {str(page.relative_to(ROOT)) for page in PAGES}
    assert {"README.md", "docs/protocol.md", "docs/api.md", "docs/security.md", "docs/configuration.md"} <= names
    assert {block.language for block in blocks()} >= {"sh", "python", "toml", "json", "http", ""}
    assert README in {block.page for block, _ in run_by("grpcurl")}
