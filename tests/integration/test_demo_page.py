"""The demo page in a real browser, against `sidecar serve --dev`: two users in two tabs, and an attack that fails."""

from __future__ import annotations

import asyncio
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, BrowserContext, ViewportSize, WebSocketRoute, expect

from tests.support.demo_tabs import NARROW, WIDE, Demo, Tab, browser, demo, open_tab

__all__ = ["browser", "demo"]

AT_ONCE_TIMEOUT_MS = 15_000  # a browser's word for being offline would cost 30 s

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]


async def test_two_users_chat_apart_and_cannot_reach_each_other(demo: Demo, browser: Browser, tmp_path: Path) -> None:
    context = await browser.new_context(viewport=WIDE, color_scheme="light")
    alice = await open_tab(context, demo, "alice")
    bob = await open_tab(context, demo, "bob")
    assert re.fullmatch(r"\S{8}…", await alice["connection-id"].text_content())

    await alice.ask("where are my apples?")
    await bob.ask("where are my bananas?")
    answers = {"alice": await alice.answered(), "bob": await bob.answered()}

    for tab, user, question in ((alice, "alice", "where are my apples?"), (bob, "bob", "where are my bananas?")):
        answer = answers[user]
        assert answer.startswith(f"Hello {user}. You asked: “{question}” ")
        await assert_streamed(tab, answer)
    for tab, foreign in ((alice, ("bob", "bananas")), (bob, ("alice", "apples"))):
        shown = await tab["messages"].text_content() + json.dumps(await tab.frames("message"))
        assert not any(word in shown for word in foreign)

    await assert_attack_fails(alice, bob, demo)
    for tab in (alice, bob):
        (welcome,) = await tab.frames("welcome")
        page = await tab.page.content()
        assert not any(welcome[secret] in page for secret in ("context_token", "resume_token"))
    await alice.page.bring_to_front()
    await alice.page.screenshot(path=tmp_path / "alice.png", full_page=True)
    assert (alice.complaints, bob.complaints) == ([], [])
    await context.close()


async def assert_streamed(tab: Tab, answer: str) -> None:
    """The answer grew word by word, one chunk a word, sequences without holes, each acknowledged in the end."""
    words = answer.split(" ")[:-1]
    frames = await tab.frames("message")
    assert [frame["data"] for frame in frames[:-1]] == [f"{word} " for word in words]
    assert [frame["stream"]["index"] for frame in frames] == list(range(len(frames)))
    assert [frame["stream"]["state"] for frame in frames] == ["open"] * len(words) + ["end"]
    assert [frame["sequence"] for frame in frames] == list(range(1, len(words) + 2))
    steps = list(dict.fromkeys(await tab.page.evaluate("window.seen.texts")))
    assert len(steps) > len(words) // 2
    assert all(later.startswith(earlier) for earlier, later in pairwise(steps))
    await expect(tab["log"].locator("[data-type=ack]").last).to_contain_text(str(len(frames)))


async def assert_attack_fails(alice: Tab, bob: Tab, demo: Demo) -> None:
    """Alice's token opens neither Bob's key nor one that nobody has; she is told the same, and Bob sees nothing."""
    (welcome,) = await bob.frames("welcome")
    await expect(alice["attack-key"]).to_have_value(welcome["isolation_key"])
    before = len(await bob.frames("message"))
    assert await alice.attack() == ("PERMISSION_DENIED", "ISOLATION_VIOLATION")
    await expect(alice["attack-source"]).to_have_text("told by the tab of Bob")
    meaning = await alice["attack-meaning"].text_content()

    await alice["attack-key"].fill("0" * 64)
    assert await alice.attack() == ("PERMISSION_DENIED", "ISOLATION_VIOLATION")
    assert await alice["attack-meaning"].text_content() == meaning

    await bob.ask("did anything come?")
    await bob.answered(2)
    frames = (await bob.frames("message"))[before:]
    assert {frame["event"] for frame in frames} == {"agent.word"}
    assert len(demo.audit_records("isolation_violation")) == 2


async def test_alone_a_made_up_key_gets_the_same_answer(demo: Demo, browser: Browser) -> None:
    context = await browser.new_context()
    tab = await open_tab(context, demo, "carol")
    assert re.fullmatch(r"[0-9a-f]{64}", await tab["attack-key"].input_value())
    await expect(tab["attack-source"]).to_have_text("a random key, which nobody has")
    assert await tab.attack() == ("PERMISSION_DENIED", "ISOLATION_VIOLATION")
    (welcome,) = await tab.frames("welcome")
    await tab["attack-key"].fill(welcome["isolation_key"])
    await tab["attack-send"].click()
    await expect(tab["attack-code"]).to_have_text("OK")
    await expect(tab["messages"]).to_contain_text('agent.attack: {"from":"carol"}')
    assert tab.complaints == []
    await context.close()


async def test_a_lost_connection_comes_back_by_itself(demo: Demo, browser: Browser) -> None:
    """At once, though the browser have no network: the sidecar is on this machine."""
    context = await browser.new_context()
    await context.add_init_script("Object.defineProperty(Navigator.prototype, 'onLine', { get: () => false })")
    tab = await open_tab(context, demo, "dave")
    await tab.page.evaluate("window.socket.close(3000)")
    await expect(tab["log"].locator("[data-type=welcome]")).to_have_count(2, timeout=AT_ONCE_TIMEOUT_MS)
    assert await tab["log"].locator("[data-type=close]").all_text_contents() == [
        "↑sentclose3000 ",
        "↓receivedclose3000 ",
    ]
    await tab.connected()
    await tab.ask("are you still there?")
    assert (await tab.answered()).startswith("Hello dave.")
    assert tab.complaints == []
    await context.close()


async def test_a_final_close_is_told_and_stays(demo: Demo, browser: Browser) -> None:
    context = await browser.new_context()
    tab = await open_tab(context, demo, "erin")
    # Past the page's own log, which reads what is sent.
    await tab.page.evaluate("WebSocket.prototype.send.call(window.socket, 'no frame')")
    await expect(tab["state"]).to_have_text("closed: 4500 bad_frame")
    await expect(tab["log"].locator("[data-type=close]")).to_contain_text("4500 bad_frame")
    await expect(tab["ask"]).to_be_disabled()
    await expect(tab["attack-send"]).to_be_disabled()
    assert len(await tab.frames("welcome")) == 1
    await context.close()


class ScriptedSidecar:
    """In the place of the sidecar's WebSocket: says what a real one says hours apart, or never, and hears the page."""

    def __init__(self, tab: Tab) -> None:
        self._tab = tab
        self._sockets: asyncio.Queue[WebSocketRoute] = asyncio.Queue()
        self._heard: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def accept(self, socket: WebSocketRoute) -> None:
        socket.on_message(lambda frame: self._heard.put_nowait(json.loads(frame)))
        self._sockets.put_nowait(socket)

    async def hear(self) -> dict[str, Any]:
        return await asyncio.wait_for(self._heard.get(), 10)

    async def hear_acknowledged(self, sequence: int) -> None:
        """Nothing but acknowledgements, each above the one before, up to that of this sequence."""
        acknowledged = 0
        while acknowledged < sequence:
            frame = await self.hear()
            assert (frame["type"], acknowledged < frame["sequence"] <= sequence) == ("ack", True)
            acknowledged = frame["sequence"]

    async def welcome(self, recovery: str, sequence: int) -> tuple[WebSocketRoute, dict[str, Any]]:
        """The next socket of the page, welcomed so, and the `hello` on it."""
        socket, hello = await asyncio.wait_for(self._sockets.get(), 10), await self.hear()
        names = ("connection_id", "isolation_key", "context_token", "resume_token")
        ids = {name: f"{name}-{recovery}" for name in names} | {"context_token_expires_at": 2_000_000_000}
        sizes = {"max_message_bytes": 262_144, "max_inbound_bytes": 65_536}
        limits = sizes | {"idle_timeout_s": 3600, "resume_window_s": 120}
        welcome = {"type": "welcome", "recovery": recovery, "sequence": sequence, "limits": limits, **ids}
        socket.send(json.dumps(welcome))
        await self._tab.connected()
        return socket, hello


async def scripted_tab(context: BrowserContext, demo: Demo, user: str) -> tuple[Tab, ScriptedSidecar]:
    tab = Tab(await context.new_page())
    sidecar = ScriptedSidecar(tab)
    await context.route_web_socket(re.compile("^ws:"), sidecar.accept)
    await tab.page.goto(f"{demo.url}?user={user}")
    return tab, sidecar


async def test_follows_what_the_sidecar_announces(demo: Demo, browser: Browser) -> None:
    context = await browser.new_context()
    tab, sidecar = await scripted_tab(context, demo, "heidi")
    socket, hello = await sidecar.welcome("new", 0)
    assert hello.keys() == {"type", "token"}

    socket.send('{"type":"token_expiring","expires_at":1}')
    refresh = await sidecar.hear()
    assert (refresh["type"], refresh["token"].count(".")) == ("refresh", 2)
    socket.send('{"type":"refreshed","expires_at":2000000000}')

    await tab.ask("are you there?")
    asked = await sidecar.hear()
    assert (asked["type"], asked["event"], asked["data"]) == ("message", "ask", {"question": "are you there?"})

    socket.send('{"type":"later_invention"}')
    socket.send('{"type":"message","sequence":1,"id":"m","event":"news","content_type":"json","data":7}')
    socket.send('{"type":"message","sequence":2,"id":"n","content_type":"binary","data":"//8="}')
    socket.send('{"type":"gap","from":3,"to":4,"reason":"evicted"}')
    await sidecar.hear_acknowledged(4)
    for note in ("news: 7", 'message: "//8="', "messages 3–4 could not be kept (evicted)"):
        await expect(tab["messages"]).to_contain_text(note)

    socket.send('{"type":"draining","reconnect_in_ms":20}')
    await socket.close(code=1012, reason="restart")
    socket, hello = await sidecar.welcome("full", 4)
    assert hello["resume"] == {"token": "resume_token-new", "last_sequence": 4, "attempt": 2}
    assert await sidecar.hear() == asked  # it had no answer
    socket.send(json.dumps({"type": "error", "id": asked["id"], "reason": "NO_AGENT", "message": ""}))
    await expect(tab["answer-note"]).to_have_text("NO_AGENT")

    socket.send('{"type":"draining","reconnect_in_ms":60000}')
    await socket.close(code=1012, reason="restart")
    await expect(tab["state"]).to_have_text(re.compile(r"^reconnecting in (59|60)\.\d s$"))
    await expect(tab["log"].locator("[data-type=close]").last).to_contain_text("1012 restart")
    assert tab.complaints == []
    await context.close()


async def test_a_question_without_an_answer_is_asked_again_in_its_own_context_alone(
    demo: Demo, browser: Browser
) -> None:
    context = await browser.new_context()
    tab, sidecar = await scripted_tab(context, demo, "mallory")
    interrupted = tab["messages"].get_by_text("interrupted: the connection context ended")
    socket, _ = await sidecar.welcome("new", 0)
    await tab.ask("first?")
    first = await sidecar.hear()

    await tab.page.reload()
    socket, hello = await sidecar.welcome("full", 0)
    assert hello["resume"]["token"] == "resume_token-new"
    assert await sidecar.hear() == first
    socket.send(json.dumps({"type": "accepted", "id": first["id"]}))
    await expect(tab["log"].locator("[data-type=accepted]")).to_have_count(1)
    await tab.ask("second?")
    assert (await sidecar.hear())["data"] == {"question": "second?"}

    await tab.page.reload()
    await sidecar.welcome("denied", 0)
    await expect(interrupted).to_have_count(2)
    await tab.ask("third?")
    third = await sidecar.hear()
    assert third["data"] == {"question": "third?"}

    await tab.page.reload()
    socket, _ = await sidecar.welcome("full", 0)
    assert await sidecar.hear() == third
    await socket.close(code=1012, reason="restart")
    await sidecar.welcome("denied", 0)
    await expect(interrupted).to_have_count(3)

    await tab.page.reload()
    socket, _ = await sidecar.welcome("full", 0)
    await tab.ask("fourth?")
    assert (await sidecar.hear())["data"] == {"question": "fourth?"}
    await socket.close(code=4500, reason="bad_frame")
    await expect(tab["state"]).to_have_text("closed: 4500 bad_frame")

    await tab.page.reload()
    _, hello = await sidecar.welcome("new", 0)
    assert "resume" not in hello
    await expect(interrupted).to_have_count(4)
    await tab.ask("fifth?")
    assert (await sidecar.hear())["data"] == {"question": "fifth?"}
    assert tab.complaints == []
    await context.close()


async def test_a_page_that_the_browser_kept_goes_on(demo: Demo, browser: Browser) -> None:
    """The browser's back and forward: the page is left and shown again with all that is in it."""
    context = await browser.new_context()
    tab = await open_tab(context, demo, "niaj")
    await tab.page.evaluate("dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true }))")
    await expect(tab["state"]).to_have_text("left")
    await tab.page.evaluate("dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))")
    await tab.connected()
    assert [frame["recovery"] for frame in await tab.frames("welcome")] == ["new", "full"]
    await tab.ask("are you still there?")
    assert (await tab.answered()).startswith("Hello niaj.")
    assert tab.complaints == []
    await context.close()


async def test_a_further_tab_of_the_same_user_begins_anew(demo: Demo, browser: Browser) -> None:
    """Contexts that were left behind wait, and give way to the user's new ones: nobody is locked out."""
    context = await browser.new_context()
    for _ in range(7):
        tab = await open_tab(context, demo, "frank")
        (welcome,) = await tab.frames("welcome")
        assert welcome["recovery"] == "new"
        await tab.page.close(run_before_unload=True)
    ended = [record["reason"] for record in demo.audit_records("context_closed") if record.get("user_id") == "frank"]
    assert set(ended) == {"replaced"}
    await context.close()


async def test_the_chooser_opens_both_users(demo: Demo, browser: Browser) -> None:
    context = await browser.new_context()
    page = await context.new_page()
    await page.goto(demo.url)
    for user in ("alice", "bob"):
        async with context.expect_page() as opening:
            await page.get_by_test_id(f"open-{user}").click()
        tab = await opening.value
        await expect(tab.get_by_test_id("user")).to_have_text(user)
        await expect(tab.get_by_test_id("state")).to_have_attribute("data-state", "connected")
    await page.goto(f"{demo.url}?user=no%20identifier")
    await expect(page.get_by_test_id("chooser-notice")).to_be_visible()
    await context.close()


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
async def test_fits_the_window(demo: Demo, browser: Browser, tmp_path: Path, size: ViewportSize) -> None:
    context = await browser.new_context(viewport=size)
    tab = await open_tab(context, demo, "grace")
    await tab.ask("What is a context token?")
    await tab.answered()
    await tab.attack()
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert await tab.page.evaluate(overflow) == 0
    if size is WIDE:
        assert await tab.page.evaluate("document.documentElement.scrollHeight - innerHeight") <= 0
    for test_id in ("ask", "attack-send", "open-other"):
        box = await tab[test_id].bounding_box()
        assert 0 <= box["x"] <= box["x"] + box["width"] <= size["width"]
    await tab.page.emulate_media(color_scheme="light")
    await tab.page.screenshot(path=tmp_path / "light.png", full_page=True)
    await tab.page.emulate_media(color_scheme="dark")
    await tab.page.screenshot(path=tmp_path / "dark.png", full_page=True)
    await context.close()
