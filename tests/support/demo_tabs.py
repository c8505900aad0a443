"""A running `sidecar serve --dev` and the tabs of a real browser, for the tests of the demo page."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from playwright.async_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    ViewportSize,
    async_playwright,
    expect,
)

from clients.conformance.in_browser import CHROMIUM_FLAGS
from tests.support.tools import lacking

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which(os.environ.get("SIDECAR_TEST_CHROMIUM", "chromium"))
START_TIMEOUT_S = 30.0
ANSWER_TIMEOUT_MS = 30_000
WIDE: ViewportSize = {"width": 1280, "height": 800}
NARROW: ViewportSize = {"width": 360, "height": 740}

# Records, from before the page's own scripts run, every text the answers ever showed and every frame that came in.
RECORDER = """
  window.seen = { texts: [], frames: [] };
  const OwnWebSocket = WebSocket;
  window.WebSocket = class extends OwnWebSocket {
    constructor(...rest) {
      super(...rest);
      window.socket = this;
      this.addEventListener("message", ({ data }) => window.seen.frames.push(JSON.parse(data)));
    }
  };
  document.addEventListener("DOMContentLoaded", () => {
    const look = () => {
      const texts = document.querySelectorAll("[data-testid=answer-text]");
      if (texts.length) window.seen.texts.push(texts[texts.length - 1].textContent);
    };
    new MutationObserver(look).observe(document.body, { childList: true, subtree: true });
  });
"""


class Demo(NamedTuple):
    """A running `sidecar serve --dev`."""

    url: str
    grpc_target: str
    service_token: str
    audit_path: Path

    def audit_records(self, event: str) -> list[dict[str, Any]]:
        """The whole records of that event so far."""
        *lines, _ = self.audit_path.read_text().split("\n")
        return [record for record in map(json.loads, lines) if record["event"] == event]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    with running_demo(tmp_path_factory.mktemp("demo")) as running:
        yield running


@contextmanager
def running_demo(folder: Path, *options: str) -> Iterator[Demo]:
    """`sidecar serve --dev` with these options beside, until the block ends: with 0."""
    loopback = "127.0.0.1:0"
    environment = os.environ | {
        "SIDECAR_WEBSOCKET__LISTEN": loopback,
        "SIDECAR_GRPC__LISTEN": loopback,
        "SIDECAR_OPS__LISTEN": loopback,
        "SIDECAR_AUDIT__PATH": str(folder / "audit.jsonl"),
    }
    command = [sys.executable, "-m", "sidecar", "serve", "--dev", *options]
    with (folder / "errors").open("w+") as errors:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True, bufsize=1
        )
        try:
            told = _announcement(process, folder / "errors")
            yield Demo(told["open"], told["grpc"], told["service token"], folder / "audit.jsonl")
        finally:
            process.send_signal(signal.SIGTERM)
            _, code = process.communicate(timeout=30), process.returncode
        assert code == 0, (folder / "errors").read_text()


def _announcement(process: subprocess.Popen[str], errors: Path) -> dict[str, str]:
    """What it prints when it serves, by its names; the service token comes last."""
    assert process.stdout is not None
    kill = threading.Timer(START_TIMEOUT_S, process.kill)
    kill.start()
    told: dict[str, str] = {}
    try:
        for line in process.stdout:
            name, _, value = line.strip().rpartition(" ")
            told[name] = value
            if name == "service token":
                return told
    finally:
        kill.cancel()
    raise AssertionError(f"it does not serve: {errors.read_text()}")


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    if CHROMIUM is None:
        lacking("chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=list(CHROMIUM_FLAGS))
        try:
            yield browser
        finally:
            await browser.close()


class Tab:
    """One user's tab, and everything its browser complained about."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", self._note)

    def __getitem__(self, test_id: str) -> Any:
        return self.page.get_by_test_id(test_id)

    def _note(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.complaints.append(message.text)

    async def open(self, url: str) -> None:
        await self.page.add_init_script(RECORDER)
        await self.page.goto(url)

    async def connected(self) -> None:
        await expect(self["state"]).to_have_attribute("data-state", "connected")

    async def ask(self, question: str) -> None:
        await self["question"].fill(question)
        await self["ask"].click()

    async def answered(self, count: int = 1) -> str:
        """The last of so many finished answers."""
        done = self.page.locator("[data-testid=answer][data-state=done]")
        await expect(done).to_have_count(count, timeout=ANSWER_TIMEOUT_MS)
        return str(await done.last.get_by_test_id("answer-text").text_content())

    async def attack(self) -> tuple[str, str]:
        """Press the button; the code and the reason shown."""
        await self["attack-send"].click()
        await expect(self["attack-code"]).to_be_visible()
        return await self["attack-code"].text_content(), await self["attack-reason"].text_content()

    async def frames(self, kind: str) -> list[dict[str, Any]]:
        """The frames of a type that its sockets have received."""
        frames = await self.page.evaluate("window.seen.frames")
        return [frame for frame in frames if frame["type"] == kind]


async def open_tab(context: BrowserContext, demo: Demo, user: str) -> Tab:
    tab = Tab(await context.new_page())
    await tab.open(f"{demo.url}?user={user}")
    await tab.connected()
    return tab


async def assert_serves_the_page(browser: Browser, folder: Path, *command: str | Path) -> None:
    """That agent, attached to a sidecar without one, is all that the page needs: an answer, a stop, an attack."""
    with running_demo(folder, "--no-agent") as demo:
        context = await browser.new_context(viewport=WIDE)
        tab = await open_tab(context, demo, "ada")
        await tab.ask("is anybody there?")
        await expect(tab["answer-note"]).to_contain_text("NO_AGENT")
        async with _attached(demo, *command):
            await tab.ask("what is a token?")
            answer = await tab.answered()
            assert answer.startswith("Hello ada. You asked: “what is a token?” A context token says where"), answer
            await tab.ask("what happens when I press stop?")
            await expect(tab["answer-text"].last).to_contain_text("stop")
            await tab["stop"].last.click()
            await expect(tab["answer-note"].last).to_contain_text("stopped: the agent has ended after")
            assert await tab.attack() == ("PERMISSION_DENIED", "ISOLATION_VIOLATION")
            await tab.page.screenshot(path=folder / "page.png", full_page=True)
        assert tab.complaints == []
        assert len(demo.audit_records("isolation_violation")) == 1
        await context.close()


@asynccontextmanager
async def _attached(demo: Demo, *command: str | Path) -> AsyncIterator[None]:
    """An agent's process, from what it says when it is attached to the end of the block."""
    told = {"SIDECAR_GRPC_ENDPOINT": demo.grpc_target, "SIDECAR_SERVICE_TOKEN": demo.service_token}
    agent = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, env=os.environ | told)
    assert agent.stdout is not None
    try:
        assert await asyncio.wait_for(agent.stdout.readline(), START_TIMEOUT_S) == b"demo agent attached\n"
        yield
    finally:
        agent.terminate()
        await asyncio.wait_for(agent.wait(), START_TIMEOUT_S)
