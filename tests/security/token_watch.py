"""Watches a running sidecar while bad tokens knock: the answers, the records, the managers, the log and a bystander."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from sidecar.api.v1 import admin_service_pb2
from tests.security import token_doors as doors
from tests.security.forge import Hand
from tests.support.running import AUDIENCE, ISSUER, RunningSidecar, Service, User

EVERY_DOOR = ("header", "subprotocol", "hello", "refresh", "exchange")
IN_TEXT = ("hello", "refresh", "exchange")
"""For what cannot stand in an HTTP header."""
NOT_OFFERED = ("header", *IN_TEXT)
"""For what cannot stand in a subprotocol's name (RFC 9110 §5.6.2)."""

_CHAIN = {"sequence", "boot_id", "time", "previous", "hash"}
_MADE_UP = {"tenant_id", "user_id", "session_id", "connection_id", "request_id", "attach_id", "token_id", "family"}


class Watch:
    """What must be true around every bad token. One a module; a bystander is spoken to at every door."""

    def __init__(self, sidecar: RunningSidecar, other: User, service: Service) -> None:
        self.sidecar = sidecar
        self.other = other
        self.service = service
        self.hand = Hand.with_secret(ISSUER, AUDIENCE, sidecar.secret)
        self._log_path = sidecar.audit_path.with_name("log.jsonl")
        self._trail_read = 0
        self._managers = 0
        self._said = 0
        self._settled = True

    async def begin(self) -> None:
        """From here on everything is counted."""
        self._settled = True
        self._managers = await self._managers_made()
        await self.added()

    async def begin_anew(self) -> None:
        """Let a case that failed be the only one that does: nothing of it is in the way of the next."""
        if not self._settled:
            await self.other.frames_before_answer_to("probe")
            receipt = await self.service.send(self.other.isolation_key, self.other.context_token)
            assert (await self.other.frame())["sequence"] == receipt.sequence
            self._said = receipt.sequence
            await self.begin()
        self._settled = False

    async def added(self) -> str:
        """What the trail was added since the last look. Looking is an admin call, recorded after all before it."""
        await self.service.security_stats()
        with self.sidecar.audit_path.open() as trail:
            trail.seek(self._trail_read)
            text = trail.read()
            self._trail_read = trail.tell()
        return text

    async def goes_on(self) -> None:
        """The bystander is sent a message, which arrives, and nothing else does."""
        payload = self.say()
        receipt = await self.service.send(self.other.isolation_key, self.other.context_token, payload.encode())
        await self.heard(receipt.sequence)

    def say(self) -> str:
        """What the bystander is to be sent next."""
        self._said += 1
        return json.dumps({"owner": self.other.subject, "number": self._said})

    async def heard(self, sequence: int) -> None:
        """What was said last arrives, in its turn."""
        frame = await self.other.frame()
        assert (sequence, frame["sequence"], frame["data"]["number"]) == (self._said,) * 3

    async def _managers_made(self) -> int:
        return int((await self.service.factory_stats()).total_managers_created)

    async def refused_everywhere(self, token: str, fault: str, reason: str, through: Sequence[str], good: str) -> None:
        """The token gets the one answer at each of these doors, and leaves one record there and nothing else.

        `good` is a token whose socket the bad one would refresh.
        """
        expected: list[dict[str, Any]] = []
        made = 0
        for door in through:
            address = doors.new_address()
            records, _ = await asyncio.gather(self._knock(door, token, address, fault, reason, good), self.goes_on())
            expected += records
            made += door == "refresh"
        await self.left(expected, managers=made, token=token)

    async def let_in_everywhere(self, token: str, subject: str, tenant_id: str) -> None:
        """The token opens every door: what is refused beside it is refused for what is bad in it.

        What it opened is ended again, and the records of all that are not looked at.
        """
        sidecar, addresses = self.sidecar, [doors.new_address() for _ in EVERY_DOOR]
        for answer in (
            await doors.header(sidecar, token, addresses[0]),
            await doors.subprotocol(sidecar, token, addresses[1]),
        ):
            assert answer.startswith(b"HTTP/1.1 101 "), answer
        assert (await doors.refresh(sidecar, token, addresses[2], token))["type"] == "refreshed"
        async with doors.opened(sidecar, addresses[3]) as socket:
            await socket.send(json.dumps({"type": "hello", "token": token}))
            welcome = await doors.next_frame(socket)
            answer = await doors.exchange(sidecar, token, addresses[4], welcome["connection_id"])
            assert answer.isolation_key == welcome["isolation_key"]
            assert (answer.context.user_id, answer.context.tenant_id) == (subject, tenant_id)
        await self.forget(subject, tenant_id)

    async def forget(self, subject: str, tenant_id: str) -> None:
        """End what a user has left, and count anew."""
        request = admin_service_pb2.DisconnectUserRequest(tenant_id=tenant_id, user_id=subject, reason="test")
        await self.service.admin.DisconnectUser(request, metadata=self.service.as_operator, timeout=10)
        await self.begin()

    async def left(self, records: list[dict[str, Any]], *, managers: int = 0, token: str = "") -> None:
        """These records are all that there is to show since the last look, and no word of the token."""
        self._managers += managers
        assert await self._managers_made() == self._managers
        trail, log = await self.added(), self._log_path.read_text()
        looks = [
            {"event": "admin_call", "service": "default", "method": name}
            for name in ("GetFactoryStats", "GetSecurityStats")
        ]
        found = [facts(json.loads(line)) for line in trail.splitlines()]
        assert found == [*records, *looks], found
        assert len(log.splitlines()) == 1, log
        for part in doors.secret_parts(token):
            assert part not in log
            assert part not in trail
        self._settled = True

    async def _knock(
        self, door: str, token: str, address: str, fault: str, reason: str, good: str
    ) -> list[dict[str, Any]]:
        sidecar, stranger = self.sidecar, {"event": "connect_refused", "address": address, "reason": "token_refused"}
        match door:
            case "header":
                assert await doors.header(sidecar, token, address) == doors.UNAUTHORIZED
            case "subprotocol":
                assert await doors.subprotocol(sidecar, token, address) == doors.UNAUTHORIZED
            case "hello":
                assert await doors.hello(sidecar, token, address) == (4501, "token_invalid")
            case "refresh":
                assert await doors.refresh(sidecar, token, address, good) == (4501, "token_invalid")
                return refreshed_badly(address, reason, fault, 4501)
            case "exchange":
                foreign = self.other.welcome["connection_id"]
                assert await doors.exchange(sidecar, token, address, foreign) == doors.status(reason)
                method = {"method": "ExchangeContextToken", "fault": fault}
                return [{"event": "token_denied", "address": address, "reason": reason} | method]
        return [stranger | {"fault": fault}]


def facts(record: dict[str, Any]) -> dict[str, Any]:
    """What a record says beside its place in the chain and whose context it is of, which has names of its own."""
    own = {name: value for name, value in record.items() if name not in _CHAIN}
    if "connection_id" in own:
        return {name: value for name, value in own.items() if name not in _MADE_UP}
    return own


def opened_well(address: str, protocol: str = "json") -> list[dict[str, Any]]:
    """The records of somebody let in."""
    return [{"event": "context_opened", "address": address, "protocol": protocol}]


def refreshed_badly(address: str, reason: str, fault: str, code: int) -> list[dict[str, Any]]:
    """The records of a socket that was opened and lost by a bad refresh."""
    return [
        *opened_well(address),
        {"event": "token_minted", "scopes": "send emit stats"},
        {"event": "token_denied", "reason": reason, "fault": fault},
        {"event": "socket_closed", "code": code},
    ]


@asynccontextmanager
async def watching(sidecar: RunningSidecar) -> AsyncIterator[Watch]:
    """A watch over this sidecar."""
    async with sidecar.user("bystander") as other, sidecar.service() as service:
        watch = Watch(sidecar, other, service)
        await watch.begin()
        yield watch
