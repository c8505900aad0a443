"""Answers on the demo page that are stopped, or reloaded, in the middle."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from tests.support.demo_tabs import ANSWER_TIMEOUT_MS, WIDE, Demo, browser, demo, open_tab

__all__ = ["browser", "demo"]

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]


async def test_a_stop_ends_the_answer_and_the_agent_says_so(demo: Demo, browser: Browser, tmp_path: Path) -> None:
    context = await browser.new_context(viewport=WIDE, color_scheme="dark")
    tab = await open_tab(context, demo, "grace")
    await tab.ask("what happens when I press stop?")
    await expect(tab["answer-text"]).to_contain_text("stop")
    await tab["stop"].click()
    await expect(tab["answer"]).to_have_attribute("data-state", "stopped", timeout=ANSWER_TIMEOUT_MS)
    text = str(await tab["answer-text"].text_content())
    await expect(tab["answer-note"]).to_contain_text(re.compile(r"^stopped: the agent has ended after \d+ words$"))
    (cancelled,) = [frame for frame in await tab.frames("message") if frame["event"] == "agent.stopped"]
    words = [frame for frame in await tab.frames("message") if frame["event"] == "agent.word"]
    assert cancelled["data"]["words"] in {len(words), len(words) - 1}
    assert {frame["stream"]["state"] for frame in words} == {"open"}
    await expect(tab["stop"]).to_be_hidden()
    await tab.page.screenshot(path=tmp_path / "stopped.png")
    # Nothing more of it comes: the next answer follows on what was last seen.
    await tab.ask("are you still there?")
    assert (await tab.answered()).startswith("Hello grace.")
    assert await tab["answer-text"].first.text_content() == text
    assert tab.complaints == []
    await context.close()


async def test_a_reload_in_mid_stream_is_no_loss(demo: Demo, browser: Browser, tmp_path: Path) -> None:
    context = await browser.new_context(viewport=WIDE)
    tab = await open_tab(context, demo, "ivan")
    await tab.ask("what happens if I reload?")
    await expect(tab["answer-text"]).to_contain_text("reload")
    before = str(await tab["answer-text"].text_content())
    (first,) = await tab.frames("welcome")
    await tab.page.reload()
    await tab.connected()
    await tab.page.screenshot(path=tmp_path / "reloaded.png")
    assert str(await tab["answer-text"].text_content()).startswith(before)
    answer = await tab.answered()
    assert answer.startswith("Hello ivan. You asked: “what happens if I reload?” Your page comes back by itself")
    assert answer.endswith("an answer under way ends with the old one. ")
    (second,) = await tab.frames("welcome")
    assert (second["recovery"], second["connection_id"]) == ("full", first["connection_id"])
    frames = await tab.frames("message")
    assert frames[0]["sequence"] == second["sequence"] + 1
    assert frames[0]["stream"]["index"] > 0
    assert frames[-1]["stream"]["state"] == "end"
    assert len(answer.split()) == frames[-1]["stream"]["index"]
    await expect(tab["question-text"]).to_have_count(1)
    assert tab.complaints == []
    await context.close()


async def test_a_stop_after_a_reload_stops_it_too(demo: Demo, browser: Browser) -> None:
    context = await browser.new_context()
    tab = await open_tab(context, demo, "judy")
    await tab.ask("enough?")
    await expect(tab["answer-text"]).to_contain_text("enough")
    await tab.page.reload()
    await tab.connected()
    await tab["stop"].click()
    await expect(tab["answer"]).to_have_attribute("data-state", "stopped", timeout=ANSWER_TIMEOUT_MS)
    await context.close()
