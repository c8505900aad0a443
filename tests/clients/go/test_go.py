"""The Go client: its own tests, its README as written, its archive in an empty project, and the examples."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
from playwright.async_api import Browser

import sidecar
from sidecar_client import Message
from tests.clients.go.project import CLIENT, GO, MODULE, ROOT, Published, beside, build, go
from tests.clients.python.agents import answer_of, text_of, user_of, within
from tests.support.away import full_outbox
from tests.support.demo_tabs import assert_serves_the_page, browser
from tests.support.running import RunningSidecar, running_sidecar
from tests.support.tools import lacking

__all__ = ["browser"]
README: Final = (CLIENT / "README.md").read_text(encoding="utf-8")
BLOCKS: Final = re.findall(r"^```go\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
DRIVER: Final = """package main

import (
	"context"
	"fmt"
	"os"

	"readme/answers"

	sidecar "ws-sidecar.dev/client"
)

func main() {
	ctx := context.Background()
	client, err := sidecar.NewClient()
	if err != nil {
		panic(err)
	}
	defer client.Close()
	key, token := os.Args[1], os.Args[2]
	fmt.Println(answers.Greet(ctx, client, key, token, "alice"))
	fmt.Println(answers.StreamAnswer(ctx, client, key, token, []string{"it", "is", "warm"}))
	fmt.Println(answers.Notify(ctx, client, key, token))
	fmt.Println(answers.Notify(ctx, client, "0", token))
	fmt.Println(answers.Notify(ctx, client, key, "x"))
}
"""
USER: Final = """package main

import (
	"fmt"

	sidecar "ws-sidecar.dev/client"
)

func main() {
	client, err := sidecar.NewClient(sidecar.WithEndpoint("unix:/nowhere"))
	fmt.Println(client, err, sidecar.Version, client.Close())
}
"""

pytestmark = pytest.mark.timeout(600)  # where nothing is compiled yet, grpc-go is


@pytest.fixture(scope="module", autouse=True)
def _toolchain() -> None:
    if GO is None:
        lacking("go")


@pytest.fixture(scope="module")
def sidecar_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSidecar]:
    with running_sidecar(tmp_path_factory.mktemp("clients-go")) as running:
        yield running


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The README's programs and the examples, built."""
    folder = tmp_path_factory.mktemp("programs")
    sources = folder / "sources"
    files = {"main.go": BLOCKS[0], "driver/main.go": DRIVER}
    beside(sources, "readme", files | {f"answers/{number}.go": text for number, text in enumerate(BLOCKS[1:])})
    go(sources, "vet", "./...")
    build(sources, folder / "quick_start")
    build(sources / "driver", folder / "driver")
    for example in ("agent_go", "http_go"):
        build(ROOT / "examples" / example, folder / example)
    return folder


@asynccontextmanager
async def process(program: Path, *arguments: str, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The program, ended by SIGTERM after the block: with 0."""
    started = await asyncio.create_subprocess_exec(
        program, *arguments, env=os.environ | environment, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield started
        started.terminate()
        assert await within(started.wait()) == 0
    finally:
        if started.returncode is None:
            started.kill()
            await started.wait()


def at(running: RunningSidecar) -> dict[str, str]:
    return {"SIDECAR_GRPC_ENDPOINT": running.grpc_target, "SIDECAR_SERVICE_TOKEN": running.service_token}


def test_its_own_tests() -> None:
    go(CLIENT, "test", "-race", "-count=1", "-timeout=120s", "./...")


def test_its_version_is_the_contracts() -> None:
    found = re.search(r'^const Version = "(.*)"$', (CLIENT / "doc.go").read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    assert found[1] == sidecar.__version__


def test_it_carries_the_licence() -> None:
    assert (CLIENT / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_an_empty_project_installs_and_uses_its_archive(tmp_path: Path) -> None:
    published = Published(tmp_path / "proxy")
    project = tmp_path / "project"
    project.mkdir()
    (project / "main.go").write_text(USER, encoding="utf-8")
    try:
        go(project, "mod", "init", "project")
        go(project, "get", f"{MODULE}@{published.version}", **published.environment)
        listed = json.loads(go(project, "list", "-m", "-json", MODULE, **published.environment))
        said = go(project, "run", ".", **published.environment)
    finally:
        published.forget()
    assert (listed["Version"], listed.get("Replace")) == (published.version, None)
    assert said == "sidecar.Client(unix:/nowhere) <nil> 0.1.0 <nil>\n"
    assert not any(name.startswith(("build/", "tools/")) for name in published.files)


def test_the_quick_start_is_ten_lines() -> None:
    imports, _, main = BLOCKS[0].partition("func main() {\n")
    assert len(main.removesuffix("}\n").splitlines()) <= 10
    assert "func" not in imports


async def test_the_quick_start_answers(sidecar_process: RunningSidecar, programs: Path) -> None:
    before = len(await sidecar_process.audit_records("agent_attached"))
    async with process(programs / "quick_start", **at(sidecar_process)):
        while len(await sidecar_process.audit_records("agent_attached")) == before:
            pass  # each look is a call that takes its turn
        async with user_of(sidecar_process, "alice") as alice:
            await alice.send("why?")
            assert text_of(await answer_of(alice)) == 'alice asked: "why?"'


async def test_the_readme_sends(sidecar_process: RunningSidecar, programs: Path) -> None:
    async with user_of(sidecar_process, "alice") as alice:
        reading = asyncio.create_task(data_of(alice, 5))
        driver = await asyncio.create_subprocess_exec(
            programs / "driver",
            alice.isolation_key,
            alice.context_token,
            env=os.environ | at(sidecar_process),
            stdout=asyncio.subprocess.PIPE,
        )
        said, _ = await within(driver.communicate())
        assert await within(reading) == [{"text": "hello"}, "it", "is", "warm", "news"]
    assert said.decode().splitlines() == ["1 <nil>", "true <nil>", "sent", "refused", "get another token"]


async def data_of(user: Any, count: int) -> list[Any]:
    """So many messages; each is acknowledged when the next is asked for, and the last when that is over."""
    events: asyncio.Queue[Any] = asyncio.Queue()

    async def read() -> None:
        async for event in user:
            assert isinstance(event, Message)
            events.put_nowait(event.data)

    reading = asyncio.create_task(read())
    try:
        return [await events.get() for _ in range(count)]
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


async def test_the_agent_example(sidecar_process: RunningSidecar, programs: Path) -> None:
    async with process(programs / "agent_go", **at(sidecar_process)) as agent:
        assert agent.stdout is not None
        assert await within(agent.stdout.readline()) == b"demo agent attached\n"
        async with user_of(sidecar_process, "alice") as alice, user_of(sidecar_process, "bob") as bob:
            await alice.send({"question": "what is a token?"}, event="ask")
            said = text_of(await answer_of(alice))
            assert said.startswith("Hello alice. You asked: “what is a token?” A context token says where")
            assert said.endswith("isolation key of every single message. ")
            await bob.send({"victim_isolation_key": alice.isolation_key}, event="attack")
            verdict = await within(anext(bob))
            assert (verdict.event, verdict.data["reason"]) == ("agent.verdict", "ISOLATION_VIOLATION")
            assert verdict.data["code"] == "PERMISSION_DENIED"
            await bob.send({"question": "stop"}, event="ask")
            word = await within(anext(bob))
            word = await within(anext(bob))  # behind the second the agent knows of the first
            bob.cancel(stream_id=word.stream.id)
            while word.event == "agent.word":
                word = await within(anext(bob))
            assert (word.event, word.data["words"] >= 1) == ("agent.stopped", True)


@pytest.mark.browser
async def test_the_agent_example_behind_the_page(browser: Browser, programs: Path, tmp_path: Path) -> None:
    await assert_serves_the_page(browser, tmp_path, programs / "agent_go")


@asynccontextmanager
async def http_example(running: RunningSidecar, programs: Path) -> AsyncIterator[aiohttp.ClientSession]:
    """A page of Alice's, signed in at the service."""
    async with process(programs / "http_go", "0", **at(running)) as service:
        assert service.stdout is not None
        line = (await within(service.stdout.readline())).decode()
        found = re.fullmatch(r"listening on (http://127\.0\.0\.1:\d+)\n", line)
        assert found is not None
        async with aiohttp.ClientSession(found[1], cookie_jar=aiohttp.CookieJar(unsafe=True)) as page:
            async with page.post("/sign-in", json={"user_id": "alice"}) as answer:
                assert answer.status == 204
            yield page


async def ask(page: aiohttp.ClientSession, token: str, **headers: str) -> tuple[int, Any]:
    question = {"question": "why me?", "user_id": "mallory"}  # what the body says of the user is nobody's business
    async with page.post("/ask", json=question, headers={"X-Context-Token": token} | headers) as answer:
        return answer.status, await answer.json()


async def test_the_http_example(sidecar_process: RunningSidecar, programs: Path) -> None:
    async with http_example(sidecar_process, programs) as page:
        async with user_of(sidecar_process, "alice") as alice, user_of(sidecar_process, "mallory") as mallory:
            for headers in ({}, {"X-Isolation-Key": alice.isolation_key}):
                status, body = await ask(page, alice.context_token, **headers)
                chunks = await answer_of(alice)
                assert (status, text_of(chunks)) == (202, "You asked: why me?")
                assert {chunk.stream.id for chunk in chunks if chunk.stream is not None} == {body["stream_id"]}
            assert await ask(page, mallory.context_token) == (403, {"reason": "ISOLATION_VIOLATION"})
            assert await ask(page, "not.a.token") == (401, {"reason": "TOKEN_INVALID"})
            token, ended = alice.context_token, alice.connection_id
            async with aiohttp.ClientSession(page._base_url) as stranger, stranger.post("/ask", json={}) as refused:
                assert refused.status == 401
        while ended not in [
            record["connection_id"] for record in await sidecar_process.audit_records("context_closed")
        ]:
            pass  # each look is a call that takes its turn
        assert await ask(page, token) == (410, {"reason": "MANAGER_GONE"})
        async with sidecar_process.user("alice") as alice:
            await full_outbox(sidecar_process, alice)
            assert await ask(page, alice.context_token) == (429, {"reason": "OUTBOX_FULL"})
