"""Contexts over a real store, through failed commits, crashes and restarts, against what a client may be told.

SIDECAR_TEST_EXAMPLES=N runs N times as many examples.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sidecar.core.errors import ErrorReason, SidecarError
from sidecar.core.idempotency import IDEMPOTENCY_WINDOW_S
from sidecar.core.limits import Limits
from sidecar.core.manager import IsolatedWebSocketManager
from sidecar.core.message import PendingReceipt, Receipt
from sidecar.core.outbox import OutboxLimits
from sidecar.storage.sqlite.store import FLUSH_S
from tests.storage.sqlite.stage import LeapingLoop, Stage, created, leap, one_batch, receipt
from tests.support.core import attempt
from tests.support.doubles import RecordingSocket

FACTOR = int(os.environ.get("SIDECAR_TEST_EXAMPLES", "1"))
TTL_S = 10.0
LIMITS = Limits(outbox=OutboxLimits(max_messages=6, ttl_s=TTL_S, critical_reserve=2, resume_window_s=100_000))
REFUSALS = {ErrorReason.OUTBOX_FULL, ErrorReason.USER_LIMIT}
FAILURES = {sqlite3.SQLITE_FULL: ErrorReason.STORAGE_UNAVAILABLE, sqlite3.SQLITE_IOERR: ErrorReason.OUTCOME_UNKNOWN}
WHICH = st.integers(0, 1)


Offered = tuple[str, bool, bool, float | None, int | None]
OFFERS: st.SearchStrategy[Offered] = st.tuples(
    st.sampled_from(["", "", "a", "b"]),  # the id
    st.booleans(),  # a repeat is of another message
    st.sampled_from([False, False, True]),  # critical
    st.sampled_from([None, None, 1.0, 60.0]),  # ttl_s
    st.sampled_from([None, None, None, None, *FAILURES]),
)


SOME = st.lists(st.tuples(WHICH, OFFERS), min_size=1, max_size=4)


class Sent(NamedTuple):
    """A message that was confirmed."""

    payload: bytes
    critical: bool
    expires_at: float
    accepted_at: float


@dataclass
class Client:
    """One context as its client and its service see it, over every life of the sidecar."""

    user_id: str
    manager: IsolatedWebSocketManager
    sent: dict[int, Sent] = field(default_factory=dict)
    ids: dict[str, int] = field(default_factory=dict)
    socket: RecordingSocket | None = None
    position: int = 0
    acknowledged: int = 0
    written: set[int] = field(default_factory=set)

    @property
    def head(self) -> int:
        return max(self.sent, default=0)

    def read(self, now: float, *, from_sequence: int | None = None) -> list[str]:
        """Take what was written; it must be one run from the client's position on. The reasons of its gaps."""
        reasons = []
        assert self.socket is not None
        for frame in self.socket.take():
            kind, first, rest = frame.decode().split(" ", 2)
            assert int(first) == self.position + 1, "a hole, or something twice"
            if kind == "message":
                self.position += 1
                assert rest.split(" ", 1)[1].encode() == self.sent[self.position].payload
                assert self.position > self.acknowledged or from_sequence is not None
                self.written.add(self.position)
            else:
                last, reason = rest.split(" ")
                reasons.append(reason)
                for sequence in range(int(first), int(last) + 1):
                    self.check_gap(sequence, reason, now)
                self.position = int(last)
        return reasons

    def check_gap(self, sequence: int, reason: str, now: float) -> None:
        """A message is lost only for what the contract gives as a reason."""
        sent = self.sent[sequence]
        if reason == "expired":
            assert sent.expires_at <= now
        elif reason == "evicted":
            assert sequence in self.written
        else:
            assert reason == "acknowledged"
        assert (sequence <= self.acknowledged) is (reason == "acknowledged")
        assert not sent.critical or reason == "acknowledged"


class Lives(RuleBasedStateMachine):
    """Two contexts of two users in one store."""

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="lives-"))
        self.loop = LeapingLoop()
        self.lives = 0
        self.numbers = 0
        self.run(self._start())

    async def _start(self) -> None:
        self.stage = Stage(self.folder / "outbox.db", limits=LIMITS)
        self.clients = [Client(user, await self.stage.create(user_id=user)) for user in ("alice", "bob")]

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.run(self.stage.store.close())
            self.loop.close()
            shutil.rmtree(self.folder)

    def run(self, step: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(step)

    @property
    def now(self) -> float:
        return self.stage.core.clock.time()

    # What services do

    @rule(several=SOME)
    def send(self, several: list[tuple[int, Offered]]) -> None:
        for which, offered in several:
            self.send_one(self.clients[which], *offered)

    def send_one(
        self, client: Client, message_id: str, other: bool, critical: bool, ttl_s: float | None, failing: int | None
    ) -> None:
        known = client.ids.get(message_id)
        if known is not None and client.sent[known].accepted_at < self.now - IDEMPOTENCY_WINDOW_S:
            known = None
        if known is not None:
            self.repeat(client, message_id, known, other)
            return
        self.numbers += 1
        payload = b"%d" % self.numbers
        outcome = self.offer(client, payload, message_id, critical=critical, ttl_s=ttl_s)
        if isinstance(outcome, SidecarError):
            assert outcome.reason in REFUSALS
            return
        assert isinstance(outcome, PendingReceipt)
        if failing is not None:
            self.stage.disk.fail("COMMIT", failing)
        settled = self.settle(outcome)
        if isinstance(settled, SidecarError):
            assert failing is not None
            assert settled.reason is FAILURES[failing]
            client.ids.pop(message_id, None)
            return
        assert failing is None
        assert (settled.sequence, settled.duplicate) == (client.head + 1, False)
        life_s = TTL_S if ttl_s is None else ttl_s
        expires_at = float("inf") if critical else self.now + life_s
        client.sent[settled.sequence] = Sent(payload, critical, expires_at, settled.accepted_time)
        if message_id:
            client.ids[message_id] = settled.sequence
        self.read(client)

    def repeat(self, client: Client, message_id: str, known: int, other: bool) -> None:
        sent = client.sent[known]
        payload = b'"other"' if other else sent.payload
        outcome = self.offer(client, payload, message_id, critical=sent.critical)
        if other:
            assert isinstance(outcome, SidecarError)
            assert outcome.reason is ErrorReason.MESSAGE_ID_REUSED
        else:
            assert isinstance(outcome, Receipt)
            assert (outcome.sequence, outcome.duplicate) == (known, True)
            assert outcome.accepted_time == sent.accepted_at
        assert client.socket is None or client.socket.frames == []

    def offer(
        self, client: Client, payload: bytes, message_id: str, **members: Any
    ) -> Receipt | PendingReceipt | SidecarError:
        return attempt(lambda: self.stage.core.offer(client.manager, payload, message_id, **members))

    def settle(self, pending: PendingReceipt) -> Receipt | SidecarError:
        async def settled() -> Receipt | SidecarError:
            try:
                return await receipt(pending)
            except SidecarError as error:
                return error

        outcome = self.run(settled())
        assert isinstance(outcome, Receipt | SidecarError)
        return outcome

    # What clients do

    def read(self, client: Client) -> None:
        if client.socket is not None:
            assert set(client.read(self.now)) <= {"expired"}
            assert client.position == client.head

    @rule(which=WHICH, back=st.integers(0, 3))
    def acknowledge(self, which: int, back: int) -> None:
        client = self.clients[which]
        if client.socket is not None:
            sequence = max(0, client.position - back)
            assert client.manager.acknowledge(client.socket.attach_id, sequence, self.stage.core.clock.now())
            client.acknowledged = max(client.acknowledged, sequence)

    @rule(which=WHICH)
    def lose(self, which: int) -> None:
        client = self.clients[which]
        if client.socket is not None:
            self.stage.core.lose(client.manager, client.socket)
            client.socket = None

    @rule(which=WHICH, back=st.sampled_from([0, 0, 0, 1, 3, 100]), several=SOME)
    def come_back(self, which: int, back: int, several: list[tuple[int, Offered]]) -> None:
        self.send(several)
        client, at = self.clients[which], self.stage.core.clock.now()
        last = max(0, client.position - back)
        client.socket = self.stage.core.socket()
        full = client.manager.resume(client.manager.context, client.socket, last, at)
        behind = last < client.acknowledged
        client.acknowledged = max(client.acknowledged, last)
        client.manager.resume_writing(at)
        client.position = last
        reasons = client.read(self.now, from_sequence=last)
        assert full is not bool(reasons), reasons
        assert not (behind and full)
        assert client.position == client.head

    # Time, and the end of it

    @rule(seconds=st.sampled_from([0.5, 5.0, 20.0, 601.0]))
    def pass_time(self, seconds: float) -> None:
        self.stage.core.clock.advance(seconds)

    @rule()
    def upkeep(self) -> None:
        """What changed is written, with a context that comes and goes."""

        async def flushed() -> None:
            leap(FLUSH_S)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            carol = await self.stage.create(user_id="carol")
            async with one_batch():
                self.stage.end(carol)

        self.run(flushed())

    @rule(several=SOME)
    def restart(self, several: list[tuple[int, Offered]]) -> None:
        self.send(several)
        self.run(self._live_on(self.stage.path, crashed=False))

    @rule(unconfirmed=st.lists(st.tuples(WHICH, st.sampled_from(["", "a", "c"])), max_size=4), several=SOME)
    def crash(self, unconfirmed: list[tuple[int, str]], several: list[tuple[int, Offered]]) -> None:
        """Killed while those wait to be written: nobody was told of them, and nobody will be."""
        self.send(several)

        async def killed() -> None:
            disk = self.stage.disk
            disk.hold()
            for which, message_id in unconfirmed:
                if message_id not in self.clients[which].ids:
                    self.offer(self.clients[which], b'"unconfirmed"', message_id)
            self.lives += 1
            path = self.stage.copy(self.folder / f"life-{self.lives}")
            disk.let_go()
            await self._live_on(path, crashed=True)

        self.run(killed())

    async def _live_on(self, path: Path, *, crashed: bool) -> None:
        await self.stage.store.close()
        async with one_batch():  # every life begins with one
            self.stage = Stage(path, limits=LIMITS, at=self.stage.core.clock.now(), life=self.stage.life + 1)
        again = {manager.context.user_id: manager for manager in self.stage.managers}
        assert set(again) == {client.user_id for client in self.clients}
        for client in self.clients:
            client.socket = None
            client.manager = again[client.user_id]
            # A crash may lose an acknowledgement: its client says again what it has. An end in order may not.
            kept = client.manager.outbox.acknowledged
            assert kept == client.acknowledged or (crashed and kept < client.acknowledged)
            client.acknowledged = kept

    @precondition(lambda self: len(self.clients[0].sent) > 3)
    @rule()
    def begin_anew(self) -> None:
        """A context ends, and its place is used again."""

        async def anew() -> None:
            client = self.clients[0]
            self.stage.end(client.manager)
            manager = self.stage.core.create(user_id=client.user_id)
            await created(manager)
            self.clients[0] = Client(client.user_id, manager)

        self.run(anew())

    @invariant()
    def nobody_has_seen_past_the_head(self) -> None:
        for client in getattr(self, "clients", []):
            outbox = client.manager.outbox
            assert outbox.head == outbox.confirmed == client.head
            assert client.position <= client.head
            assert outbox.acknowledged <= client.acknowledged
            assert client.socket is None or outbox.acknowledged == client.acknowledged


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=40 * FACTOR, stateful_step_count=40, derandomize=FACTOR == 1)
