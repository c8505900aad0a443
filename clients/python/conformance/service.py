"""A service's commands: each is one call of the client."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from itertools import count, cycle
from pathlib import Path
from typing import Any

import grpc

from conformance import values
from conformance.values import Values
from sidecar_client import Agent, AgentEvent, AsyncSidecarClient, BroadcastScope, Closed, InboundMessage, Sender
from sidecar_client.errors import SidecarError, error_from_reason

LOAD_IN_FLIGHT = 4_096


class HandlerFailed(Exception):
    """What a handler raises on command."""


@dataclass(slots=True)
class Handling:
    """One handler of a message, and what it was told to do: its chunks go by way of its queue."""

    message: InboundMessage
    commands: asyncio.Queue[tuple[str, Values, asyncio.Future[Values]]] = field(default_factory=asyncio.Queue)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)


class RunningAgent:
    """An agent whose handlers do what they are told, event by event."""

    def __init__(self, client: AsyncSidecarClient, service_name: str, events: list[str], **settings: Any) -> None:
        self.agent = Agent(service_name, client=client, **settings)
        self.events: asyncio.Queue[Values] = asyncio.Queue()
        self.contexts: dict[int, Any] = {}
        self.handlings: dict[int, Handling] = {}
        self._handles = count(1)
        self.task: asyncio.Task[None] | None = None
        for kind in ("opened", "away", "back", "closed"):
            getattr(self.agent, f"on_{kind}")(self._noticing(kind))
        for event in events:
            self.agent.on_message(event)(self._answer)

    def _noticing(self, kind: str) -> Any:
        async def notice(context: Any, closed: Closed | None = None) -> None:
            handle = next(self._handles)
            self.contexts[handle] = context
            said: Values = {"handle": handle, "kind": kind, "isolation_key": context.isolation_key}
            said["user"] = values.user(context.user)
            said |= {"context_token": context.context_token} if closed is None else {}
            self.events.put_nowait(said | ({} if closed is None else {"code": closed.code, "reason": closed.reason}))

        return notice

    async def _answer(self, context: Any, message: AgentEvent) -> None:
        assert isinstance(message, InboundMessage)
        handle = next(self._handles)
        handling = self.handlings[handle] = Handling(message)
        self.contexts[handle] = context
        self.events.put_nowait(values.message_event(message, handle))
        try:
            await self._obey(handling)
        except asyncio.CancelledError:
            handling.cancelled.set()
            raise
        finally:
            handling.over.set()
            while not handling.commands.empty():
                handling.commands.get_nowait()[2].set_exception(error_from_reason("STREAM_CANCELLED", "it is over"))

    async def _obey(self, handling: Handling) -> None:
        """A stream is opened with its first chunk: a handler that sends none has none."""
        what, said, answer = await handling.commands.get()
        if what != "reply_send":
            return _leave(what, answer)
        names = {name: said[name] for name in ("event_type", "stream_id") if name in said}
        async with handling.message.reply(**names) as stream:
            while what == "reply_send":
                try:
                    receipt = await stream.send(**values.chunk_from(said["message"]))
                    answer.set_result(values.receipt(receipt))
                except SidecarError as error:
                    answer.set_exception(error)
                except asyncio.CancelledError:
                    answer.set_exception(error_from_reason("STREAM_CANCELLED", "the handler was cancelled"))
                    raise
                what, said, answer = await handling.commands.get()
            _leave(what, answer)
        return None


def _leave(what: str, answer: asyncio.Future[Values]) -> None:
    answer.set_result({})
    if what == "reply_fail":
        raise HandlerFailed


class ServiceCommands:
    """One runner's clients, senders and agents, by their names."""

    def __init__(self) -> None:
        self._clients: dict[str, AsyncSidecarClient] = {}
        self._senders: dict[str, Sender] = {}
        self._agents: dict[str, RunningAgent] = {}

    async def open(self, said: Values) -> Values:
        client = AsyncSidecarClient(
            endpoint=said["endpoint"],
            service_token=said.get("service_token", ""),
            credentials=_credentials(said.get("ca_file")),
            **({"timeout_s": said["timeout_s"]} if "timeout_s" in said else {}),
        )
        self._clients[said["client"]] = client
        ready_s = said.get("ready_s", 20.0)
        if ready_s:
            await client.wait_until_ready(ready_s)
        return {}

    async def close(self, said: Values) -> Values:
        await self._clients.pop(said["client"]).close()
        return {}

    async def send_to_user(self, said: Values) -> Values:
        payload, options = values.message_from(said["message"])
        options |= _some(said, "expected_user_id", "wait_for_ack_s", "timeout_s")
        return values.receipt(
            await self._clients[said["client"]].send_to_user(**_key(said), payload=payload, **options)
        )

    async def emit_critical_event(self, said: Values) -> Values:
        more = _some(said, "message_id", "expected_user_id", "wait_for_ack_s", "timeout_s")
        client = self._clients[said["client"]]
        return values.receipt(
            await client.emit_critical_event(**_key(said), event_type=said["event_type"], data=said["data"], **more)
        )

    async def send_batch(self, said: Values) -> Values:
        items = [values.item_from(item) for item in said["items"]]
        return {"results": [values.result(came) for came in await self._clients[said["client"]].send_batch(items)]}

    async def broadcast(self, said: Values) -> Values:
        payload, options = values.message_from(said["message"])
        scope = BroadcastScope[said["scope"].upper()]
        came = await self._clients[said["client"]].broadcast(said["context_token"], scope, payload, **options)
        return {"managers": came.managers, "connections": came.connections, "refused": came.refused}

    async def close_manager(self, said: Values) -> Values:
        client = self._clients[said["client"]]
        return {"connections": await client.close_manager(**_key(said), **_some(said, "code", "reason"))}

    async def get_manager_stats(self, said: Values) -> Values:
        stats = await self._clients[said["client"]].get_manager_stats(**_key(said))
        return {name: getattr(stats, name) for name in stats.__slots__}

    async def get_context(self, said: Values) -> Values:
        facts = await self._clients[said["client"]].get_context(said["context_token"])
        return {
            "isolation_key": facts.isolation_key,
            "context": values.user(facts.context),
            "scopes": list(facts.scopes),
            "expire_time": facts.expire_time,
        }

    async def refresh_context_token(self, said: Values) -> Values:
        token = await self._clients[said["client"]].refresh_context_token(said["context_token"])
        return {"context_token": token.text, "expire_time": token.expire_time}

    async def revoke_context_token(self, said: Values) -> Values:
        await self._clients[said["client"]].revoke_context_token(said["context_token"])
        return {}

    async def exchange_context_token(self, said: Values) -> Values:
        client = self._clients[said["client"]]
        grant = await client.exchange_context_token(said["user_token"], said["connection_id"], said["scopes"])
        return {
            "isolation_key": grant.isolation_key,
            "context_token": grant.token.text,
            "expire_time": grant.token.expire_time,
            "context": values.user(grant.context),
        }

    # Senders

    async def sender_open(self, said: Values) -> Values:
        reports = said.get("report_acknowledged", False)
        self._senders[said["sender"]] = self._clients[said["client"]].sender(report_acknowledged=reports)
        return {}

    async def sender_send(self, said: Values) -> Values:
        payload, options = values.message_from(said["message"])
        options |= _some(said, "expected_user_id", "wait_for_ack_s", "timeout_s")
        return values.receipt(await self._senders[said["sender"]].send(**_key(said), payload=payload, **options))

    async def sender_send_many(self, said: Values) -> Values:
        sender = self._senders[said["sender"]]
        messages = [values.message_from(message) for message in said["messages"]]
        sends = [sender.send(**_key(said), payload=payload, **options) for payload, options in messages]
        return {"results": [values.result(came) for came in await asyncio.gather(*sends, return_exceptions=True)]}

    async def sender_close(self, said: Values) -> Values:
        await self._senders.pop(said["sender"]).close()
        return {}

    async def load(self, said: Values) -> Values:
        """As many callers as the sender takes, each with one message after the other."""
        payload = b'"' + b"x" * (said["payload_bytes"] - 2) + b'"'
        targets = cycle([_key(target) for target in said["targets"]])
        began = time.monotonic()
        sent = refused = 0

        async def call(sender: Sender) -> None:
            nonlocal sent, refused
            while time.monotonic() - began < said["seconds"]:
                try:
                    await sender.send(**next(targets), payload=payload)
                    sent += 1
                except SidecarError:
                    refused += 1

        async with self._clients[said["client"]].sender() as sender:
            await asyncio.gather(*(call(sender) for _ in range(LOAD_IN_FLIGHT)))
            return {"sent": sent, "refused": refused, "seconds": time.monotonic() - began}

    # Agents

    async def agent_open(self, said: Values) -> Values:
        client, events = self._clients[said["client"]], said.get("events", ["*"])
        running = RunningAgent(client, said["service_name"], events, **_some(said, "credits"))
        running.task = asyncio.create_task(running.agent.run())
        await asyncio.sleep(0)  # it has begun: there is something to wait for
        await running.agent.wait_attached()
        self._agents[said["agent"]] = running
        return {}

    async def agent_next(self, said: Values) -> Values:
        return await self._agents[said["agent"]].events.get()

    async def context_send(self, said: Values) -> Values:
        payload, options = values.message_from(said["message"])
        context = self._agents[said["agent"]].contexts[said["handle"]]
        return values.receipt(await context.send(payload, **options))

    async def reply_send(self, said: Values) -> Values:
        return await self._told("reply_send", said)

    async def reply_end(self, said: Values) -> Values:
        return await self._told("reply_end", said)

    async def reply_fail(self, said: Values) -> Values:
        return await self._told("reply_fail", said)

    async def _told(self, what: str, said: Values) -> Values:
        handling = self._agents[said["agent"]].handlings[said["handle"]]
        if handling.over.is_set():
            raise error_from_reason("STREAM_CANCELLED", "it is over")
        answer: asyncio.Future[Values] = asyncio.get_running_loop().create_future()
        handling.commands.put_nowait((what, said, answer))
        came = await answer
        if what != "reply_send":
            await handling.over.wait()
        return came

    async def reply_cancelled(self, said: Values) -> Values:
        await self._agents[said["agent"]].handlings[said["handle"]].cancelled.wait()
        return {}

    async def agent_close(self, said: Values) -> Values:
        await self._agents[said["agent"]].agent.stop()  # what it has begun is still answered meanwhile
        del self._agents[said["agent"]]
        return {}


def _credentials(ca_file: str | None) -> grpc.ChannelCredentials | None:
    return None if ca_file is None else grpc.ssl_channel_credentials(Path(ca_file).read_bytes())


def _key(said: Values) -> Values:
    return {"isolation_key": said["isolation_key"], "context_token": said["context_token"]}


def _some(said: Values, *names: str) -> Values:
    """Those of the names that were given."""
    return {name: said[name] for name in names if name in said}
