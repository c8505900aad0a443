"""A running sidecar with people on it: who is wronged, who stands beside her, who must notice nothing; and the trail.

Every case is played by a caller with an address and a connection of its own.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import grpc

from sidecar.api.v1 import agent_service_pb2_grpc, context_service_pb2, delivery_service_pb2, types_pb2
from sidecar.core.errors import CATALOGUE, ErrorReason
from sidecar.security.context_keys import ContextTokenKeys
from sidecar.security.jose import sign
from tests.rpc.rig import TIMEOUT_S, Attempt, Refused, summary
from tests.security.forge import read
from tests.support.bystander import Bystander, bystander
from tests.support.relay import Relay, relay_to
from tests.support.running import RunningSidecar, Service, User, running_sidecar
from tests.support.trail import Trail

OPERATOR = "operator-token-of-these-tests"
DELIVERER = "deliverer-token-of-these-tests"
"""Of a service that may neither exchange nor attach nor administer."""
LOCAL = "local-token-of-these-tests"
"""Of a service that may do everything, for the tenant `elsewhere` only."""
SCOPES = ("send", "emit", "stats", "close", "broadcast:user", "broadcast:tenant")
SECRET_LENGTH = 8
"""What is shorter than that is no secret: its text may stand in an answer by chance."""


class Caller(Service):
    """A service with a connection of its own, from `address` once it has called."""

    def __init__(self, channel: grpc.aio.Channel, relay: Relay) -> None:
        super().__init__(channel, OPERATOR)
        self.channel: Any = channel
        self.agent = agent_service_pb2_grpc.AgentServiceStub(channel)
        self._relay = relay

    @property
    def address(self) -> str:
        """Where its calls come from."""
        return self._relay.last_address


class WatchedSidecar(RunningSidecar):
    """A running sidecar whose trail is read over a connection that stays, and each record once."""

    def __init__(self, sidecar: RunningSidecar, service: Service) -> None:
        super().__init__(**{each.name: getattr(sidecar, each.name) for each in fields(sidecar)})
        self._service = service
        self._records: list[dict[str, Any]] = []
        self._read_bytes = 0

    async def audit_records(self, event: str | None = None) -> list[dict[str, Any]]:
        await self._service.security_stats()
        with self.audit_path.open("rb") as trail:
            trail.seek(self._read_bytes)
            data = trail.read()
        self._read_bytes += len(data)
        self._records += [json.loads(line) for line in data.splitlines()]
        return [record for record in self._records if event is None or record["event"] == event]


@dataclass
class Stage:
    """One running sidecar, the people on it, and tokens for each of them with every scope."""

    sidecar: RunningSidecar
    service: Service
    relay: Relay
    trail: Trail
    bystander: Bystander
    folder: Path
    people: AsyncExitStack = field(repr=False)
    log_events: list[str] = field(default_factory=lambda: ["serving"])
    """What the log may hold in the end, in order."""
    alice: User = field(init=False)
    carol: User = field(init=False)
    second: User = field(init=False)
    """A second context of Alice's."""
    stranger: User = field(init=False)
    """Of another tenant, by Alice's name."""
    gone: User = field(init=False)
    """Whose context has ended."""
    tokens: dict[str, str] = field(default_factory=dict, repr=False)
    """By isolation key."""
    revoked: str = field(default="", repr=False)
    """A token of Alice's that was taken back."""
    _sent: Counter[str] = field(default_factory=Counter, repr=False)

    async def assemble(self) -> None:
        """Let everybody come, and one go."""
        join = self.people.enter_async_context
        async with self.sidecar.user("gone") as self.gone:
            await self.know(self.gone)
        await self.trail.until("context_closed", connection_id=self.gone.welcome["connection_id"])
        self.alice, self.carol = await join(self.sidecar.user("alice")), await join(self.sidecar.user("carol"))
        self.second = await join(self.sidecar.user("alice"))
        self.stranger = await join(self.sidecar.user("alice", "elsewhere"))
        for user in (self.alice, self.carol, self.second):
            await self.know(user)
        await self.know(self.stranger, "elsewhere")
        self.revoked = await self.exchange(self.alice, "send")
        revocation = context_service_pb2.RevokeContextTokenRequest()
        await self.service.context.RevokeContextToken(revocation, metadata=(("x-context-token", self.revoked),))
        await self.trail.mark()

    async def know(self, user: User, tenant_id: str | None = None) -> str:
        """A token with every scope for that user's context."""
        token = self.tokens[user.isolation_key] = await self.exchange(user, *SCOPES, tenant_id=tenant_id)
        return token

    async def exchange(self, user: User, *scopes: str, tenant_id: str | None = None) -> str:
        """A token with these scopes."""
        request = context_service_pb2.ExchangeContextTokenRequest(
            user_token=self.sidecar.user_token(user.subject, tenant_id),
            connection_id=user.welcome["connection_id"],
            scopes=scopes,
        )
        answer = await self.service.context.ExchangeContextToken(request, metadata=self.service.as_operator)
        return str(answer.context_token)

    def attempt(self, user: User | None = None, payload: bytes = b"{}", **members: Any) -> Attempt:
        """A good send to that user (Alice), but for the `members` of its message."""
        user = user or self.alice
        message = types_pb2.Message(payload=payload, **members)
        return Attempt(user.isolation_key, self.tokens[user.isolation_key], message)

    def forged(self, user: User, **claims: object) -> str:
        """The user's token with other claims, signed with the sidecar's own key."""
        key = ContextTokenKeys(self.folder / "context.keys", now=0).ring.keys[-1]
        changed = read(self.tokens[user.isolation_key], 1) | claims
        return sign(key.header, changed, key.secret)

    @asynccontextmanager
    async def caller(self) -> AsyncIterator[Caller]:
        """Somebody with a connection of their own."""
        # Without a pool of its own a channel may share another's connection.
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(self.relay.target, options=options) as channel:
            yield Caller(channel, self.relay)

    @asynccontextmanager
    async def seen(self, **events: int) -> AsyncIterator[list[dict[str, Any]]]:
        """What is done inside adds exactly these records, appends nothing, and the bystander's traffic goes on.

        Yields the list that the records are in afterwards.
        """
        found: list[dict[str, Any]] = []
        try:
            yield found
            await self.bystander.goes_on(1)
            await self.untouched(self.alice)
            found.extend(await self.trail.expect(**events))
        except BaseException:
            await self.recover()
            raise

    async def recover(self) -> None:
        """After a case that failed: what it left behind is not the next one's."""
        for user in (self.alice, self.carol, self.second):
            request = delivery_service_pb2.GetManagerStatsRequest(isolation_key=user.isolation_key)
            metadata = (("x-context-token", self.tokens[user.isolation_key]),)
            stats = await self.service.delivery.GetManagerStats(request, metadata=metadata)
            self._sent[user.isolation_key] = stats.messages_sent_total
            await user.frames_before_answer_to("probe")
        await self.trail.mark()

    async def untouched(self, user: User) -> None:
        """A good send has the sequence after the last good one, and is the next frame on the user's socket."""
        self._sent[user.isolation_key] += 1
        sequence = self._sent[user.isolation_key]
        receipt = await self.service.send(user.isolation_key, user.context_token, b'"untouched"')
        assert receipt.sequence == sequence
        frame = await user.frame()
        assert (frame["type"], frame.get("sequence"), frame.get("data")) == ("message", sequence, "untouched"), frame

    async def went_to(self, user: User, count: int) -> None:
        """So many good messages of a case were accepted for that user; they are the next frames on the socket."""
        for _ in range(count):
            self._sent[user.isolation_key] += 1
            frame = await user.frame()
            assert (frame["type"], frame.get("sequence")) == ("message", self._sent[user.isolation_key]), frame


@asynccontextmanager
async def staged(
    folder: Path, settings: str = "", *, module: str = "sidecar", **environment: str
) -> AsyncIterator[Stage]:
    """A stage for the tests of one module. In the end nothing of it may be left, and nothing unforeseen in the log."""
    with serving(folder, settings, module=module, **environment) as sidecar:
        async with AsyncExitStack() as outside:
            service = await outside.enter_async_context(sidecar.service())
            await sidecar.audit_records()
            before = await left_over(sidecar, service)
            for _ in range(5):  # what only happens to be open is not counted
                before &= await left_over(sidecar, service)
            async with AsyncExitStack() as people:
                relay = await people.enter_async_context(relay_to(sidecar.grpc_target))
                other = await people.enter_async_context(bystander(sidecar))
                watched = WatchedSidecar(sidecar, service)
                stage = Stage(watched, service, relay, Trail(watched), other, folder, people)
                await stage.assemble()
                yield stage
            deadline = asyncio.get_running_loop().time() + TIMEOUT_S
            while left := await left_over(sidecar, service) - before:
                assert asyncio.get_running_loop().time() < deadline, f"{left} is left over"
            check_log(folder / "log.jsonl", stage.log_events, [*stage.tokens, *stage.tokens.values(), OPERATOR])


@contextmanager
def serving(
    folder: Path, settings: str = "", *, module: str = "sidecar", **environment: str
) -> Iterator[RunningSidecar]:
    """A running sidecar that knows three services."""
    tokens = folder / "services"
    everything = ["deliver", "exchange", "attach", "admin"]
    services = [
        {"name": "operator", "token": OPERATOR, "allow": everything, "scopes": SCOPES},
        {"name": "deliverer", "token": DELIVERER, "allow": ["deliver"]},
        {"name": "local", "token": LOCAL, "allow": everything, "tenants": ["elsewhere"]},
    ]
    tokens.write_text("\n".join(json.dumps(service) for service in services))
    tokens.chmod(0o600)
    environment["SIDECAR_SERVICE_AUTH__TOKEN_FILE"] = str(tokens)
    with running_sidecar(folder, settings, module=module, **environment) as sidecar:
        sidecar.service_token = OPERATOR
        yield sidecar


async def left_over(sidecar: RunningSidecar, service: Service) -> Counter[str]:
    """Contexts, and descriptors of the process by what they are."""
    managers = (await service.factory_stats()).active_managers
    found = Counter({"managers": managers})
    for descriptor in Path(f"/proc/{sidecar.process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found[re.sub(r":\[\d+\]$", "", str(descriptor.readlink()))] += 1
    return found


def check_log(path: Path, events: list[str], secrets: list[str]) -> None:
    """The log holds these events, no traceback and no secret, and nothing that gRPC's core says of bad HTTP/2."""
    text = path.read_text()
    assert [json.loads(line)["event"] for line in text.splitlines()] == events
    assert "Traceback" not in text
    assert not [secret for secret in secrets if secret in text]


def check_status(status: Any, *secrets: str | bytes) -> Refused:
    """The status taken apart. Its text is the catalogue's, and nothing that the caller sent stands in it."""
    outcome = summary(status)
    assert status.message == CATALOGUE[ErrorReason(outcome.reason)][1]
    answered = status.SerializeToString()
    for secret in secrets:
        data = secret.encode() if isinstance(secret, str) else secret
        assert len(data) < SECRET_LENGTH or data not in answered
    return outcome
