"""Watches a running sidecar while bad clients knock: its records, managers, descriptors, log, and a bystander."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from sidecar.api.v1 import admin_service_pb2, types_pb2
from sidecar.security.audit_verify import verify_file
from tests.support.bystander import Bystander, bystander
from tests.support.raw_websocket import JSON_OFFER, RawWebSocket, raw_websocket
from tests.support.running import RunningSidecar, Service, running_sidecar
from tests.support.trail import Trail

Record = dict[str, Any]
STAGES = ("before hello", "welcomed", "raw")
_CHAIN = {"sequence", "boot_id", "time", "previous", "hash"}
_NAMES = {"tenant_id", "session_id", "connection_id", "request_id", "attach_id", "token_id", "family"}
_UNTOLD = _CHAIN | _NAMES | {"scopes", "messages"}
_PAYLOAD = b'"' + b"x" * 200_000 + b'"'


class Watch:
    """What must be true around every bad client. One a module; its bystander talks on through all of it."""

    def __init__(self, sidecar: RunningSidecar, other: Bystander, service: Service) -> None:
        self.sidecar = sidecar
        self.other = other
        self.trail = Trail(sidecar)
        self.service = service
        self._users = 0
        self._managers = 0
        self._descriptors: Counter[str] = Counter()

    async def begin(self) -> None:
        """From here on everything is counted."""
        self._managers = await self.managers()
        await self.trail.mark()
        self._descriptors = descriptors(self.sidecar.process.pid)

    def new_user(self) -> str:
        """Somebody who has no context yet."""
        self._users += 1
        return f"user-{self._users}"

    @asynccontextmanager
    async def client(self, **options: Any) -> AsyncIterator[RawWebSocket]:
        """A TCP connection to the WebSocket listener."""
        async with raw_websocket(self.sidecar.websocket_port, **options) as client:
            yield client

    async def managers(self) -> int:
        """How many managers there are."""
        return int((await self.service.factory_stats()).active_managers)

    async def left(self, *expected: Record) -> None:
        """These records, in this order, are all that was added since the last look; and nobody else was held up.

        What a client's leaving causes may not be there yet: it is asked for until as many have come.
        """
        async with asyncio.timeout(10):
            while len(seen := await self._seen()) < len(expected):
                await self.other.goes_on(1)
        await self.trail.mark()
        assert seen == list(expected), seen
        await self.other.goes_on()
        assert_quiet(self.sidecar)

    async def _seen(self) -> list[Record]:
        """What was recorded since the last look, beside the looking."""
        return [facts(record) for record in await self.trail.added() if record["event"] != "admin_call"]

    async def all_gone(self) -> None:
        """What clients left detached is ended; then managers and descriptors are as many as in the beginning."""
        request = admin_service_pb2.ListManagersRequest(page_size=1_000)
        listed = await self.service.admin.ListManagers(request, metadata=self.service.as_operator)
        for manager in listed.managers:
            if manager.context.user_id != self.other.user.subject:
                ending = admin_service_pb2.CleanupManagerRequest(isolation_key=manager.isolation_key, reason="test")
                await self.service.admin.CleanupManager(ending, metadata=self.service.as_operator)
        assert await self.managers() == self._managers
        async with asyncio.timeout(10):
            # Connections end on their own deadline; each look takes its turn behind a message of the bystander's.
            while (now := descriptors(self.sidecar.process.pid)) - self._descriptors:
                await self.other.goes_on(1)
        assert now <= self._descriptors


def descriptors(pid: int) -> Counter[str]:
    """The open descriptors of a process, by kind."""
    found: Counter[str] = Counter()
    for number in os.listdir(f"/proc/{pid}/fd"):
        try:
            found[re.sub(r"\[?\d+\]?", "", os.readlink(f"/proc/{pid}/fd/{number}"))] += 1
        except FileNotFoundError:  # closed while it was looked at
            continue
    return found


def facts(record: Record) -> Record:
    """What a record says beside its place in the chain and the names that are made up."""
    return {name: value for name, value in record.items() if name not in _UNTOLD}


def refused(client: RawWebSocket, reason: str, **fields: object) -> Record:
    """A connection that got no context."""
    return {"event": "connect_refused", "address": client.address, "reason": reason} | fields


def opened(client: RawWebSocket, user: str, protocol: str = "json") -> list[Record]:
    """The records of a context."""
    made = {"event": "context_opened", "user_id": user, "address": client.address, "protocol": protocol}
    return [made] if protocol == "raw" else [made, {"event": "token_minted", "user_id": user}]


def socket_closed(user: str, code: int) -> Record:
    """A socket of a context is gone."""
    return {"event": "socket_closed", "user_id": user, "code": code}


def context_closed(user: str, reason: str) -> Record:
    """A context has ended."""
    return {"event": "context_closed", "user_id": user, "reason": reason}


async def at_stage(watch: Watch, client: RawWebSocket, stage: str, user: str) -> None:
    """Take a connection as far as one of STAGES."""
    token = watch.sidecar.user_token(user)
    if stage == "welcomed":
        await client.hello(token)
    elif stage == "raw":
        await client.upgrade(("Authorization", f"Bearer {token}"))
    else:
        await client.upgrade(JSON_OFFER)


async def stall(sidecar: RunningSidecar, service: Service, client: RawWebSocket, user: str) -> None:
    """A client of the JSON protocol is sent so much that no more can be written, and reads nothing of it."""
    welcome = await client.hello(sidecar.user_token(user))
    for _ in range(100):
        receipt = await service.send(welcome["isolation_key"], welcome["context_token"], _PAYLOAD)
        if receipt.state != types_pb2.DELIVERY_STATE_WRITTEN:
            assert receipt.state == types_pb2.DELIVERY_STATE_QUEUED
            return
    raise AssertionError("20 MB were written to somebody who reads nothing")


def failed_at(client: RawWebSocket, stage: str, user: str, code: int, reason: str) -> list[Record]:
    """The records of a connection that was taken so far and then failed."""
    if stage == "before hello":
        return [refused(client, reason)]
    if stage == "welcomed":
        return [*opened(client, user), socket_closed(user, code)]
    return [*opened(client, user, "raw"), socket_closed(user, code), context_closed(user, "socket_lost")]


def log_of(sidecar: RunningSidecar) -> list[Record]:
    """The lines of its log."""
    path = sidecar.audit_path.with_name("log.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_quiet(sidecar: RunningSidecar, *further: str) -> None:
    """Its log says that it serves, and nothing else: no incident, no traceback, nothing unforeseen."""
    assert [line["event"] for line in log_of(sidecar)] == ["serving", *further]


@asynccontextmanager
async def watching(sidecar: RunningSidecar) -> AsyncIterator[Watch]:
    """A watch over this sidecar, and a bystander's traffic around all that it sees."""
    async with bystander(sidecar) as other, sidecar.service() as service:
        watch = Watch(sidecar, other, service)
        await watch.begin()
        yield watch
        await watch.all_gone()


@contextmanager
def quiet_sidecar(folder: Path, settings: str = "", **environment: str) -> Iterator[RunningSidecar]:
    """A sidecar that must stop as it should, with a log that has nothing to tell and a trail that verifies.

    Contexts that bad clients leave detached are kept, so that nothing ends of itself while records are counted.
    """
    environment = {"SIDECAR_OUTBOX__RESUME_WINDOW_S": "3600"} | environment
    with running_sidecar(folder, settings, **environment) as sidecar:
        yield sidecar
        assert sidecar.stop() == 0
        assert_quiet(sidecar, "draining", "stopped")
        assert verify_file(sidecar.audit_path).fault is None
