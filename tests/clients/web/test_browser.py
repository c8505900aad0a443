"""The web client in a real browser: a page, a worker, a reload, a second tab, and a network that goes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sidecar_client import AgentContext, InboundMessage
from tests.clients.python.agents import agent_for, attached
from tests.clients.web.pages import URL, Site, shown, site, value
from tests.clients.web.readme import BLOCKS, block
from tests.support.running import RunningSidecar

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]
TENANT = "browser"
# Each page's console and its complaints are the test's: an uncaught error fails it.
FACTS = "({key: connection.isolationKey, token: connection.contextToken, id: connection.connectionId})"


class Visit:
    """One test's site, and the user who is there."""

    def __init__(self, site: Site, sidecar: RunningSidecar, user_id: str) -> None:
        self.site = site
        self.sidecar = sidecar
        self.user_id = user_id
        self.complaints: list[str] = []
        site.context.on("weberror", lambda error: self.complaints.append(str(error.error)))

    async def say(self, facts: dict[str, str], *texts: str) -> None:
        """A service's messages to that context."""
        async with self.sidecar.service() as service:
            for text in texts:
                await service.send(facts["key"], facts["token"], json.dumps(text).encode())


@pytest.fixture
async def visit(sidecar: RunningSidecar, web: Path, request: pytest.FixtureRequest) -> AsyncIterator[Visit]:
    user_id = request.node.name.removeprefix("test_")
    async with site(sidecar, web, lambda: sidecar.user_token(user_id, TENANT)) as made:
        visit = Visit(made, sidecar, user_id)
        yield visit
        assert visit.complaints == []


def test_the_quick_start_is_ten_lines() -> None:
    assert len([line for line in BLOCKS[0].splitlines() if line]) <= 10


async def test_the_quick_start_runs_as_it_is_written(visit: Visit) -> None:
    agent = agent_for(visit.sidecar)

    @agent.on_message
    async def answer(context: AgentContext, message: InboundMessage) -> None:
        async with message.reply() as stream:
            for word in f"{context.user.user_id} asked: {message.data}".split():
                await stream.send(text=f"{word} ")

    async with attached(agent):
        page = await visit.site.open(BLOCKS[0])
        await shown(page, f"{visit.user_id} asked: How warm is it? ")


async def test_a_page_listens_as_the_readme_says(visit: Visit) -> None:
    visit.site.files["/listen.js"] = block("function listen(")
    page = await visit.site.open(
        f"""import {{ connect }} from "@ws-sidecar/web";
        import {{ listen }} from "/listen.js";
        window.connection = connect("{URL}", {{ token: async () => (await fetch("/token")).text() }});
        listen(connection, (text) => document.body.append(text, "; "));
        await connection.opened;
        window.ready = true;"""
    )
    await value(page, "window.ready")
    await visit.say(await page.evaluate(FACTS), "one", "two")
    await shown(page, "one; two; ")
    async with visit.sidecar.service() as service:
        from sidecar.api.v1.admin_service_pb2 import DisconnectUserRequest

        request = DisconnectUserRequest(tenant_id=TENANT, user_id=visit.user_id)
        await service.admin.DisconnectUser(request, metadata=service.as_operator)
    await shown(page, "one; two; over: 4505 closed_by_service; ")


async def test_a_page_asks_its_own_services(visit: Visit) -> None:
    visit.site.files["/request.js"] = block("function request(")
    page = await visit.site.open(
        f"""import {{ connect }} from "@ws-sidecar/web";
        import {{ request }} from "/request.js";
        const connection = connect("{URL}", {{ token: async () => (await fetch("/token")).text() }});
        await connection.opened;
        window.fetch = async (...call) => (window.call = {{ call, facts: {FACTS} }});
        request(connection, "/ask", {{ text: "why?" }});"""
    )
    seen = await value(page, "window.call")
    assert seen["call"][0] == "/ask"
    headers = seen["call"][1]["headers"]
    assert (headers["X-Context-Token"], headers["X-Isolation-Key"]) == (seen["facts"]["token"], seen["facts"]["key"])


WORKER = f"""import {{ connect }} from "/ws-sidecar.min.js";
const connection = connect("{URL}", {{ token: async () => (await fetch("/token")).text() }});
await connection.opened;
postMessage({{ facts: {FACTS}, page: typeof document }});
for await (const event of connection) postMessage(event.data);"""


async def test_a_worker_is_a_page_without_a_window(visit: Visit) -> None:
    visit.site.files["/worker.js"] = WORKER
    page = await visit.site.open(
        """window.heard = [];
        new Worker("/worker.js", { type: "module" }).onmessage = ({ data }) => heard.push(data);"""
    )
    first = await value(page, "heard[0]")
    assert first["page"] == "undefined"
    await visit.say(first["facts"], "to the worker")
    assert await value(page, "heard[1]") == "to the worker"


RELOADING = f"""import {{ connectAgain }} from "/again.js";
window.connection = connectAgain("{URL}", async () => (await fetch("/token")).text());
(async () => {{
  try {{
    for await (const event of connection) {{
      if (event.kind !== "message") throw new Error(event.kind);
      document.body.append(event.data, "; ");
      if (event.data === "last") await new Promise(() => undefined);
    }}
  }} catch (error) {{
    document.body.append(`over: ${{error.code}}`);
  }}
}})();
await connection.opened;
window.ready = connection.recovery;"""


async def test_a_reload_goes_on_where_it_was(visit: Visit) -> None:
    visit.site.files["/again.js"] = block("function connectAgain(")
    page = await visit.site.open(RELOADING)
    assert await value(page, "window.ready") == "new"
    before = await page.evaluate(FACTS)
    await visit.say(before, "one", "two", "last", "not read")
    await shown(page, "one; two; last; ")
    await page.reload()
    assert await value(page, "window.ready") in {"full", "gap"}
    after = await page.evaluate(FACTS)
    assert after["id"] == before["id"]
    await shown(page, "last; ")  # it was in the consumer's hands, and not dealt with


async def test_a_second_tab_takes_over_and_the_first_leaves_it_to_it(visit: Visit) -> None:
    visit.site.files["/again.js"] = block("function connectAgain(")
    page = await visit.site.open(RELOADING)
    await value(page, "window.ready")
    before = await page.evaluate(FACTS)
    async with visit.site.context.expect_page() as opening:
        await page.evaluate("void open(location.href)")  # with a copy of its sessionStorage
    second = await opening.value
    assert await value(second, "window.ready") == "full"
    assert (await second.evaluate(FACTS))["id"] == before["id"]
    await shown(page, "over: 4503")
    assert await page.evaluate("sessionStorage.getItem('sidecar')") is None
    await visit.say(before, "for the second")
    await shown(second, "for the second; ")
    assert await page.evaluate("connection.state") == "closed"


async def test_a_network_that_goes_and_comes(visit: Visit) -> None:
    page = await visit.site.open(
        f"""import {{ connect }} from "@ws-sidecar/web";
        window.states = [];
        window.connection = connect("{URL}", {{
          token: async () => (await fetch("/token")).text(),
          onState: (state) => states.push(state),
        }});
        for await (const event of connection) document.body.append(event.data, "; ");"""
    )
    await value(page, "connection.state === 'connected'")
    facts = await page.evaluate(FACTS)
    await visit.say(facts, "before")
    await shown(page, "before; ")
    await visit.site.context.set_offline(True)
    await value(page, "!navigator.onLine")
    await visit.say(facts, "meanwhile")
    await visit.site.context.set_offline(False)
    await value(page, "states.filter((state) => state === 'connected').length === 2")
    await visit.say(facts, "after")
    await shown(page, "before; meanwhile; after; ")
    assert await page.evaluate("connection.recovery") == "full"


async def test_the_conformance_runner_runs_in_a_page(visit: Visit) -> None:
    page = await visit.site.open('import "/runner.js";')
    await value(page, "typeof handle === 'function'")

    async def tell(do: str, **members: Any) -> Any:
        line = json.dumps({"id": 1, "do": do, "with": {"user": "u", **members}})
        return json.loads(await page.evaluate("line => handle(line)", line))

    token = visit.sidecar.user_token(visit.user_id, TENANT)
    facts = (await tell("connect", url=URL, tokens=[token]))["ok"]
    await visit.say({"key": facts["isolation_key"], "token": facts["context_token"]}, "one")
    assert (await tell("next"))["ok"]["data"] == "one"
    assert (await tell("acknowledge"))["ok"] == {}
    assert (await tell("send", data=1))["error"]["reason"] == "NO_AGENT"
    assert (await tell("fly"))["error"]["reason"] == "UNKNOWN_COMMAND"
    assert (await tell("detach"))["ok"]["last_sequence"] == 1
