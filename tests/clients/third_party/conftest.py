"""A sidecar for clients of other people's, and those clients, each skipped by name where its tool is missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, suppress

import pytest
from playwright.async_api import async_playwright

from clients.conformance.in_browser import CHROMIUM_FLAGS
from tests.clients.third_party.browser_client import BrowserClient, origin
from tests.clients.third_party.clients import Client
from tests.clients.third_party.node_client import NodeClient, install
from tests.clients.third_party.python_client import PythonClient
from tests.support.demo_tabs import CHROMIUM
from tests.support.running import RunningSidecar, running_sidecar
from tests.support.tools import lacking

NewClient = Callable[[], Client]


@pytest.fixture(scope="module")
def page_origin() -> Iterator[str]:
    """Where the browser's page is."""
    with origin() as served:
        yield served


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory, page_origin: str) -> Iterator[RunningSidecar]:
    """That lets the browser's page in."""
    folder = tmp_path_factory.mktemp("third-party")
    with running_sidecar(folder, SIDECAR_WEBSOCKET__ALLOWED_ORIGINS=json.dumps([page_origin])) as running:
        yield running
    assert '"level": "error"' not in (folder / "log.jsonl").read_text()


@pytest.fixture(
    params=[
        pytest.param("websocket-client"),
        pytest.param("ws"),
        pytest.param("browser", marks=pytest.mark.browser),
    ]
)
async def new_client(request: pytest.FixtureRequest, page_origin: str) -> AsyncIterator[NewClient]:
    """A client of that kind, as often as it is called."""
    made: list[Client] = []

    def note(client: Client) -> Client:
        made.append(client)
        return client

    async with AsyncExitStack() as stack:
        match request.param:
            case "websocket-client":
                yield lambda: note(PythonClient())
            case "ws":
                for tool in ("node", "npm"):
                    if shutil.which(tool) is None:
                        lacking(tool)
                program = install()
                yield lambda: note(NodeClient(program))
            case _:
                if CHROMIUM is None:
                    lacking("chromium")
                playwright = await stack.enter_async_context(async_playwright())
                browser = await playwright.chromium.launch(
                    executable_path=CHROMIUM, headless=True, args=list(CHROMIUM_FLAGS)
                )
                stack.push_async_callback(browser.close)
                yield lambda: note(BrowserClient(browser, page_origin))
        for client in made:
            with suppress(OSError):
                await client.stop()
