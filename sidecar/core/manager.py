"""All the state of one connection context: its sockets, its outbox, its counters. Nothing in it is shared.

Every method is one synchronous step: the state is whole before and after it, and nothing in between can be seen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Final

from sidecar.core.close_codes import Close, CloseCode, catalogued
from sidecar.core.conversation import Conversation
from sidecar.core.errors import (
    ErrorReason,
    FailedPrecondition,
    IsolationViolation,
    ManagerGone,
    ResourceExhausted,
    SidecarError,
    Unavailable,
)
from sidecar.core.idempotency import RecentMessages
from sidecar.core.lifecycle import ConnectionLifecycleManager
from sidecar.core.message import (
    MESSAGE_OVERHEAD_BYTES,
    DeliveryState,
    Instant,
    Message,
    PendingReceipt,
    Receipt,
    StreamPlace,
    StreamState,
    check_message,
    fingerprint,
    make_receipt,
)
from sidecar.core.outbox import Outbox, OutboxEntry
from sidecar.core.outcomes import Outcomes
from sidecar.core.ports import AuditEvent
from sidecar.core.statistics import ManagerStatistics
from sidecar.core.stored import Creation, MessageIdentity, StoredContext, StoredState
from sidecar.core.streams import Chunk

if TYPE_CHECKING:
    from sidecar.core.agents import AgentRegistry
    from sidecar.core.deliveries import InboundMessage
    from sidecar.core.identity import UserExecutionContext
    from sidecar.core.inbox import Answer
    from sidecar.core.limits import UserAccount, UserLevelResourceManager
    from sidecar.core.outcomes import OutcomeListener, OutcomeWait
    from sidecar.core.ports import Encoder, OutboxStore, Socket
    from sidecar.core.stored import RestoredContext
    from sidecar.core.writes import WriteBatch

NO_ATTEMPT: Final = -1
_QUEUED: Final = DeliveryState.QUEUED  # reading a member of an enumeration costs more than a call
_WRITTEN: Final = DeliveryState.WRITTEN
_OPEN: Final = StreamState.OPEN


class _Unconfirmed(PendingReceipt):
    """The receipt of an append that the store has yet to answer, and what is needed to make it out."""

    __slots__ = ("accepted", "entry", "identity", "message_id", "stream")

    def __init__(
        self,
        entry: OutboxEntry,
        message_id: str,
        identity: MessageIdentity | None,
        accepted: Instant,
        stream: StreamPlace | None,
    ) -> None:
        self.receipt, self.error, self._callbacks = None, None, ()  # what super's would do, at a third of its cost
        self.entry = entry
        self.message_id = message_id
        self.identity = identity
        self.accepted = accepted
        self.stream = stream


@dataclass(frozen=True, slots=True)
class ManagerPorts:
    """What every manager of one factory is handed: none of it holds any manager's state."""

    resources: UserLevelResourceManager
    store: OutboxStore
    agents: AgentRegistry
    on_end: Callable[[IsolatedWebSocketManager, UserAccount, str, Instant], None]
    schedule: Callable[[IsolatedWebSocketManager, float], None]
    writes: WriteBatch


class IsolatedWebSocketManager:
    """One context's manager. Made by the factory only; ended once, for good.

    `ends_with_socket` is the raw protocol's: a message leaves the outbox when written, and the context ends with its
    socket.
    """

    __slots__ = (
        "__weakref__",
        "_account",
        "_answers_to_pass_over",
        "_durability",
        "_encoder",
        "_max_message_bytes",
        "_max_queued_bytes",
        "_message_id_prefix",
        "_on_end",
        "_outcomes",
        "_recent",
        "_resources",
        "_store",
        "_unconfirmed",
        "_writes",
        "attempt",
        "away_s",
        "context",
        "conversation",
        "created",
        "creation",
        "detached_at",
        "end_watchers",
        "ended",
        "ends_with_socket",
        "epoch",
        "isolation_key",
        "last_activity",
        "lifecycle",
        "messages_failed",
        "messages_sent",
        "mirrors",
        "outbox",
        "primary",
        "resume_digest",
        "revoked_families",
        "scheduled_for",
    )

    def __init__(  # noqa: PLR0913 - what is fixed when a context is made
        self,
        context: UserExecutionContext,
        ports: ManagerPorts,
        account: UserAccount,
        encoder: Encoder,
        at: Instant,
        *,
        epoch: int,
        message_id_prefix: str,
        ends_with_socket: bool,
        resume_digest: bytes,
    ) -> None:
        self.context = context
        self.isolation_key = context.get_isolation_key()
        self.ends_with_socket = ends_with_socket
        self.resume_digest = resume_digest
        self.created = at
        self.last_activity = at
        self.away_s = 0.0
        """How long of the time since the last activity nobody was attached."""
        self.detached_at: float | None = at.monotonic
        self.ended = False
        self.primary: Socket | None = None
        self.mirrors: dict[str, Socket] = {}
        self.outbox = Outbox(ports.resources.limits.outbox)
        self.messages_sent = 0
        self.messages_failed = 0
        self.scheduled_for: float | None = None
        self.end_watchers: set[Callable[[], None]] = set()
        self.attempt = NO_ATTEMPT
        """The highest attempt that any hello of this client has named."""
        self.revoked_families: frozenset[str] = frozenset()
        self.lifecycle = ConnectionLifecycleManager(self, ports.resources.limits, ports.schedule)
        self._account = account
        self._resources = ports.resources
        self._max_message_bytes = ports.resources.limits.max_message_bytes
        self._max_queued_bytes = ports.resources.limits.queued_bytes_per_user
        self._encoder = encoder
        self._store = ports.store
        self._durability = ports.store.durability
        self._writes = ports.writes
        self.conversation = Conversation(context, ports.agents, ports.store)
        self.epoch = epoch
        self._message_id_prefix = message_id_prefix
        self._on_end = ports.on_end
        self.creation: Creation | None = None
        self._recent = RecentMessages()
        self._outcomes: Outcomes | None = None
        # Made with the first that the store answers later: an empty one takes up as much as all else here.
        self._unconfirmed: deque[_Unconfirmed] | None = None
        self._answers_to_pass_over = 0
        if ports.store.survives:
            self.outbox.dropped = []

    def __repr__(self) -> str:
        state = "ended" if self.ended else "detached" if self.primary is None else "attached"
        return f"<IsolatedWebSocketManager {self.context.connection_id} {state} head={self.outbox.head}>"

    # Sockets

    @property
    def connections(self) -> tuple[Socket, ...]:
        """The sockets now, primary first."""
        mirrors = tuple(self.mirrors.values())
        return mirrors if self.primary is None else (self.primary, *mirrors)

    def add_connection(
        self, context: UserExecutionContext, socket: Socket, at: Instant, *, mirror: bool = False
    ) -> None:
        """Attach a socket: the primary, or a mirror that gets what is sent from now on.

        A mirror past the ninth is refused USER_LIMIT: there is always room for the primary. A new primary fences the
        one before it (4503).
        """
        self._require(context)
        if mirror:
            self.admit_mirror()
            self.mirrors[socket.attach_id] = socket
            return
        if self.primary is not None:
            self.close_connection(self.primary, catalogued(CloseCode.TAKEN_OVER), at)
            self._require(context)  # a raw context has just ended with its socket
        self.primary = socket
        # Without a primary it is detached; one that was taken over from is so since just now.
        self.away_s += at.monotonic - max(self.detached_at or 0.0, self.last_activity.monotonic)
        self.detached_at = None

    def note_attempt(self, attempt: int) -> bool:
        """A hello that wants to resume has named this attempt. False when it is stale: not above the highest seen."""
        if attempt <= self.attempt:
            return False
        self.attempt = attempt
        self._store.changed(self.isolation_key)
        return True

    def resume(self, context: UserExecutionContext, socket: Socket, last_sequence: int, at: Instant) -> bool:
        """Attach `socket` as the new primary of a client that has everything up to `last_sequence`, in one step.

        The former primary is fenced first (4503): nothing is written to it from here on and nothing that it sends
        counts. `last_sequence` (at most `outbox.confirmed`) acknowledges; the writer goes on behind it. Returns whether
        everything that the client missed is kept (`full`), else gaps stand in its place (`gap`).
        """
        self.add_connection(context, socket, at)
        self.conversation.back(at)
        outbox, before = self.outbox, self.outbox.acknowledged
        self.drop_expired(at.monotonic)
        full, freed = outbox.rewind(last_sequence)
        self._account.queued_bytes -= freed
        self._tell_acknowledged(before)
        self._tell_lost()
        if self._outcomes:  # what was written may be waiting again
            self._look_at_next_end()
        return full

    def admit_mirror(self) -> None:
        """Raise USER_LIMIT when there is no room for one more mirror beside a primary."""
        self._resources.admit_connection(1 + len(self.mirrors))

    def remove_connection(self, context: UserExecutionContext, attach_id: str, code: int, at: Instant) -> bool:
        """A socket is gone, with that close code (1006 for none). False when it was not this manager's any more.

        The client's own 1000 on the primary ends the context, and so does any loss of a raw socket; else it detaches.
        """
        self._require(context)
        mirror = self.mirrors.get(attach_id)
        if mirror is not None:
            self._drop_mirror(mirror, code)
            return True
        if self.primary is None or self.primary.attach_id != attach_id:
            return False
        self._detach(self.primary, code, at)
        if code == CloseCode.NORMAL or self.ends_with_socket:
            self.end("client_closed" if code == CloseCode.NORMAL else "socket_lost", None, at, code=code)
        return True

    def close_connection(self, socket: Socket, close: Close, at: Instant) -> None:
        """Close one socket from this side. From here on nothing it sends counts and nothing is written to it."""
        socket.close(close)
        if socket.attach_id in self.mirrors:
            self._drop_mirror(socket, close.code)
        elif self.primary is socket:
            self._detach(socket, close.code, at)
            if self.ends_with_socket:
                self.end(close.text, None, at, code=close.code)

    def cleanup_all_connections(self, context: UserExecutionContext, close: Close, reason: str, at: Instant) -> int:
        """End the context: close every socket with `close`, drop the outbox. Returns how many sockets there were."""
        self._require(context)
        count = len(self.connections)
        self.end(reason, close, at)
        return count

    # Messages

    def send_to_user(self, context: UserExecutionContext, message: Message, at: Instant) -> Receipt | PendingReceipt:
        """Accept one message into the outbox and write it to whoever listens.

        Never waits: with a store that answers later the receipt is pending. Raises a SidecarError when refused; then
        nothing was appended. Safe to repeat with the same message_id.
        """
        if self.ended or context is not self.context:
            self._require(context)
        try:
            return self._accept(message, at)
        except SidecarError:
            self.messages_failed += 1
            raise

    def emit_critical_event(
        self, context: UserExecutionContext, event_type: str, data: bytes, message_id: str, at: Instant
    ) -> Receipt | PendingReceipt:
        """Send JSON that never gives way to other messages and never expires while the manager lives."""
        return self.send_to_user(context, Message(message_id, event_type, data, critical=True), at)

    def acknowledge(self, attach_id: str, sequence: int, at: Instant) -> bool:
        """The client has everything up to `sequence`. False, and nothing changes, when that was never written to it.

        A mirror's acknowledgement counts for nothing. Idempotent.
        """
        outbox = self.outbox
        if self.primary is None or self.primary.attach_id != attach_id:
            return True
        if sequence > outbox.cursor:
            return False
        before = outbox.acknowledged
        if sequence > before:
            self._account.queued_bytes -= outbox.acknowledge(sequence)
            self._tell_acknowledged(before)
        return True

    def resume_writing(self, at: Instant) -> None:
        """The primary takes more: write on where the writer stopped, in order."""
        outbox, socket = self.outbox, self.primary
        self.drop_expired(at.monotonic)  # first, so that a run of them is one gap
        with self._writes:  # many frames to one socket
            while socket is not None and outbox.cursor < outbox.confirmed and socket.writable:
                entry = outbox.entries.get(outbox.cursor + 1)
                if entry is None:
                    self._announce_gap(socket)
                else:
                    socket.write(entry.frame)
                    outbox.cursor = entry.sequence
        self._tell_lost()
        if self.ends_with_socket and outbox.entries:
            self._account.queued_bytes -= outbox.release(outbox.cursor)
            self._store.changed(self.isolation_key)

    def drop_expired(self, now: float) -> None:
        """Drop what has outlived its ttl; what is left is in time, promised, or yet to be confirmed."""
        freed = self.outbox.drop_expired(now)
        if freed:
            self._account.queued_bytes -= freed
            self._tell_lost()

    def listen(self, listener: OutcomeListener) -> None:
        """Tell `listener` of acknowledgements and losses from now on, until `leave` or the end of the manager."""
        self._watched().listen(listener)
        self._look_at_next_end()

    def leave(self, listener: OutcomeListener) -> None:
        """Tell it no more. Idempotent."""
        self._watched().leave(listener)

    def wait_for_outcome(self, sequence: int, done: Callable[[], None]) -> OutcomeWait:
        """Call `done` once the message of that sequence is acknowledged or dropped; `end_watchers` tell of the end."""
        self._look_at_its_end(sequence)
        return self._watched().wait(sequence, done)

    def receive(self, message: InboundMessage, at: Instant, answer: Answer) -> None:
        """Queue a client's message for the agent service that takes it; `answer` says what became of it.

        Raises NO_AGENT, AGENT_BUSY or MESSAGE_ID_REUSED; then nothing was accepted.
        """
        self.touch(at)
        self.conversation.receive(message, at, answer)

    def cancel(self, stream_id: str | None, message_id: str | None, at: Instant) -> None:
        """The client wants no more of a stream, or of the answer to its message; whoever sends it is told."""
        self.touch(at)
        if self.conversation.cancel(stream_id, message_id):
            self._store.changed(self.isolation_key)

    def stop_waiting(self, wait: OutcomeWait) -> None:
        """Forget a wait. Idempotent."""
        self._watched().stop_waiting(wait)

    def get_manager_stats(self, context: UserExecutionContext, at: Instant) -> ManagerStatistics:
        """This manager's counters as of now."""
        self._require(context)
        return ManagerStatistics(
            connections_managed=len(self.connections),
            messages_sent_total=self.messages_sent,
            messages_failed_total=self.messages_failed,
            last_activity_time=self.last_activity.unix,
            manager_age_seconds=at.monotonic - self.created.monotonic,
            cleanup_scheduled=self.detached_at is not None,
            outbox_messages=len(self.outbox.entries),
            outbox_bytes=self.outbox.queued_bytes,
        )

    def touch(self, at: Instant) -> None:
        """The client did something that counts as activity: a message, a cancel, a refresh."""
        self.last_activity, self.away_s = at, 0.0

    def end(self, reason: str, close: Close | None, at: Instant, *, code: int = 0) -> None:
        """End for good: sockets (`close` None: going away), outbox, stored rows, waiters, account. Idempotent.

        `code` is the close code of a primary socket that is gone already, in this same step.
        """
        if self.ended:
            return
        self.ended = True
        close = close or catalogued(CloseCode.GOING_AWAY)
        if self.primary is not None:
            code = close.code
        for socket in self.connections:
            socket.close(close)
            self._audit_close(socket, close.code)
        self.primary = None
        self.mirrors.clear()
        self.lifecycle.dispose()
        waiting = self._forget_unconfirmed()
        self._account.queued_bytes -= self.outbox.queued_bytes
        self.outbox.clear()
        self._recent.clear()
        if self._outcomes is not None:
            self._outcomes.clear()
        self._store.dispose(self.isolation_key)
        self.conversation.end(code, reason, at)
        self._on_end(self, self._account, reason, at)
        for one in waiting:
            one.settle(None, ManagerGone())
        watchers, self.end_watchers = self.end_watchers, set()
        for watcher in watchers:
            watcher()

    # The way of one message

    def _accept(self, message: Message, at: Instant) -> Receipt | PendingReceipt:
        # Taken apart once: a member of a NamedTuple costs as much as a call.
        message_id, _, payload, _, _, _, min_durability, critical, _, checked, stream = message
        if not checked:
            names_known = stream is not None and self.conversation.streams.goes_on(stream, message)
            check_message(message, self._max_message_bytes, names_known=names_known)
        if min_durability > self._durability:
            raise FailedPrecondition(ErrorReason.DURABILITY_UNAVAILABLE)
        if stream is not None or message_id:
            known = self._recall(message, at) if stream is None else self._recall_chunk(message, stream, at)
            if known is not None:
                return known
        account, outbox = self._account, self.outbox
        bucket = account.bucket
        if bucket is not None:
            self._resources.admit_rate(account, at.monotonic)
        identity = None
        if message_id and (stream is None or not stream.position):
            identity = MessageIdentity(message_id, fingerprint(message))
        sequence = outbox.head + 1
        message_id = message_id or f"{self._message_id_prefix}{sequence}"
        frame = self._encoder.message(sequence, message_id, message)
        size = len(payload) + MESSAGE_OVERHEAD_BYTES
        if len(frame) > 2 * size:  # headers and control characters take what they take
            size = len(frame)
        over_user = account.queued_bytes + size - self._max_queued_bytes
        if over_user > 0 or critical or not outbox.fits(size):
            self._make_room(message, size, over_user, at)
        if bucket is not None:
            bucket.take(at.monotonic)
        return self._append(message, message_id, identity, frame, size, at)

    def _make_room(self, message: Message, size: int, over_user: int, at: Instant) -> None:
        outbox, socket = self.outbox, self.primary
        yielding = (socket is not None and socket.writable) or not outbox.ever_acknowledged
        if over_user > 0:  # what has expired in another context of the user's is in nobody's way
            over_user -= self._account.drop_expired(at.monotonic)
        before = outbox.ordinary_bytes
        try:
            outbox.make_room(size, message.critical, yielding, at.monotonic, over_user)
        except ResourceExhausted as error:
            self._resources.limit_hits += error.reason is ErrorReason.USER_LIMIT
            raise
        finally:  # what expired has gone though the message may be refused
            if outbox.ordinary_bytes != before:
                self._account.queued_bytes -= before - outbox.ordinary_bytes
                self._tell_lost()

    def _append(
        self,
        message: Message,
        message_id: str,
        identity: MessageIdentity | None,
        frame: bytes,
        size: int,
        at: Instant,
    ) -> Receipt | PendingReceipt:
        _, _, _, _, ttl_s, _, _, critical, _, _, stream = message
        entry = self.outbox.append(frame, size, at.monotonic, ttl_s, critical)
        sequence = entry.sequence
        self._account.queued_bytes += size
        if stream is not None and self.outbox.dropped is not None:  # for a store that keeps rows
            entry.stream = stream
        pending = None
        if not self._store.append(self.isolation_key, self.epoch, entry, identity, at, self._confirmed):
            pending = _Unconfirmed(entry, message_id, identity, at, stream)
            if self._unconfirmed is None:
                self._unconfirmed = deque()
            self._unconfirmed.append(pending)
        if stream is not None:
            self._take_chunk(message, stream, Chunk(sequence, at, pending))
        if identity is not None:
            forgotten = self._recent.remember(identity, sequence, at, pending)
            if forgotten is not None:
                self._store.forget(self.isolation_key, forgotten)
        if pending is not None:
            return pending
        return self._confirm(sequence, message_id, frame, at)

    def _confirm(self, sequence: int, message_id: str, frame: bytes, accepted: Instant) -> Receipt:
        outbox = self.outbox
        socket = self.primary
        outbox.confirmed = sequence
        self.messages_sent += 1
        last = self.last_activity
        if accepted is not last and accepted.monotonic > last.monotonic:
            self.last_activity, self.away_s = accepted, 0.0
        written = 0
        if socket is not None and socket.writable:
            if outbox.cursor == sequence - 1 and not self.ends_with_socket:
                socket.write(frame)
                outbox.cursor = sequence
            else:
                self.resume_writing(accepted)
            written = outbox.cursor >= sequence
        if self.mirrors:
            written += self._write_to_mirrors(frame, accepted)
        if outbox.cursor >= sequence:
            state = _WRITTEN
        else:
            state = _QUEUED
            if self._outcomes:
                self._look_at_its_end(sequence)
        return make_receipt((message_id, sequence, state, self._durability, int(written), False, accepted.unix))

    def _write_to_mirrors(self, frame: bytes, at: Instant) -> int:
        written = 0
        for mirror in tuple(self.mirrors.values()):
            if mirror.writable:
                mirror.write(frame)
                written += 1
            else:
                # A mirror has no cursor to catch up from: an honest close beats a silent hole.
                self.close_connection(mirror, catalogued(CloseCode.SLOW_CONSUMER), at)
        return written

    def _confirmed(self, error: Exception | None) -> None:
        """The store's answer to the oldest append that it has not answered; the store answers each, in order."""
        if self.ended:
            return
        if self._answers_to_pass_over:
            self._answers_to_pass_over -= 1
            return
        if error is None:
            assert self._unconfirmed is not None
            first = self._unconfirmed.popleft()
            receipt = self._confirm(first.entry.sequence, first.message_id, first.entry.frame, first.accepted)
            if first.identity is not None:
                self._recent.confirmed(first.message_id, first)
            if first.stream is not None:
                self.conversation.streams.confirmed(first.stream)
            first.settle(receipt, None)
            return
        refusal = error if isinstance(error, SidecarError) else Unavailable(ErrorReason.STORAGE_UNAVAILABLE)
        # Later appends were conditional on this one: they fail with it, and the head goes back to what is confirmed.
        # The store's own answers to them, still to come, must not pass for answers to what is appended from now on.
        waiting = self._forget_unconfirmed()
        self._answers_to_pass_over = len(waiting) - 1
        self._account.queued_bytes -= self.outbox.fall_back()
        for one in waiting:
            one.settle(None, refusal)

    def _forget_unconfirmed(self) -> Sequence[_Unconfirmed]:
        """Those that wait, to be settled as failed once the manager's state is whole again."""
        waiting, self._unconfirmed = self._unconfirmed or (), None
        for one in reversed(waiting):
            self._recent.forget(one.message_id, one)
            if one.stream is not None:
                self.conversation.streams.fall_back(one.stream)
        self.messages_failed += len(waiting)
        return waiting

    def _announce_gap(self, socket: Socket) -> None:
        hole = self.outbox.gap_at(self.outbox.cursor + 1)
        frame = self._encoder.gap(hole.first, hole.last, hole.reason)
        if frame is not None:
            socket.write(frame)
        self.outbox.announced(hole)

    def _recall(self, message: Message, at: Instant) -> Receipt | PendingReceipt | None:
        known = self._recent.recall(message, at)
        if known is None:
            return None
        if known.pending is not None:
            return known.pending.as_duplicate()
        self.drop_expired(at.monotonic)
        state = self.outbox.state_of(known.sequence)
        return Receipt(message.message_id, known.sequence, state, self._durability, 0, True, known.accepted.unix)

    # Who is told

    def _watched(self) -> Outcomes:
        if self._outcomes is None:
            self._outcomes = Outcomes()
        return self._outcomes

    def _tell_acknowledged(self, before: int) -> None:
        """The store, and whoever waits, that the client has more than `before`."""
        acknowledged = self.outbox.acknowledged
        if acknowledged > before:
            self._store.changed(self.isolation_key)
            if self._outcomes:
                self._outcomes.acknowledged(acknowledged)

    def _tell_lost(self) -> None:
        """The same of what was dropped since this was last called."""
        if self.outbox.dropped:
            self._store.changed(self.isolation_key)
        lost = self.outbox.take_lost()
        if lost and self._outcomes:
            for first, last in lost:
                self._outcomes.dropped(first, last)

    def _look_at_its_end(self, sequence: int) -> None:
        """Somebody is to be told should that message expire unwritten: once it is written, that tells nobody."""
        entry = self.outbox.entries.get(sequence)
        if entry is not None and sequence > self.outbox.cursor:
            self.lifecycle.look_by(entry.expires_at)

    def _look_at_next_end(self) -> None:
        """The same of every message that waits; those to come are seen to as they come."""
        if self.outbox.cursor < self.outbox.head:
            self.lifecycle.look_by(self.outbox.next_expiry())

    # What a store keeps

    def create_stored(self) -> None:
        """Have the store keep this context; `creation` is its answer where that comes later. Call once, at first."""
        context = self.context
        stored = StoredContext(
            isolation_key=self.isolation_key,
            tenant_id=context.tenant_id,
            user_id=context.user_id,
            session_id=context.session_id,
            connection_id=context.connection_id,
            request_id=context.request_id,
            created_at=context.created_at,
            permissions=context.permissions,
            metadata=context.metadata,
            issuer=context.issuer,
            resume_digest=self.resume_digest,
            ends_with_socket=self.ends_with_socket,
        )
        creation = Creation()
        if not self._store.create(stored, self.epoch, self.stored_state, creation.settle):
            self.creation = creation

    def stored_state(self) -> StoredState:
        """Where this context stands now, for the store; what was dropped is told once."""
        outbox = self.outbox
        dropped, outbox.dropped = tuple(outbox.dropped or ()), []
        return StoredState(
            acknowledged=outbox.acknowledged,
            released=outbox.cursor if self.ends_with_socket else outbox.acknowledged,
            head=outbox.confirmed,
            dropped=dropped,
            gaps=outbox.gaps(),
            attempt=self.attempt,
            last_activity_at=self.last_activity.unix,
            streams=self.conversation.stored_streams(),
        )

    def restore(self, kept: RestoredContext, at: Instant) -> None:
        """Be as the store kept it, detached from now on. Call once, before anything else."""
        self.conversation.announced = True
        created_at = self.context.created_at
        self.created = Instant(at.monotonic - max(at.unix - created_at, 0.0), created_at)
        self.attempt = kept.state.attempt
        self.outbox.restore(kept.state, kept.messages, at)
        self._account.queued_bytes += self.outbox.queued_bytes
        self.messages_sent = self.outbox.head
        if kept.state.streams:
            self.conversation.streams.restore(kept.state.streams, at.monotonic)
        self.conversation.restore(kept.inbound, at)
        for message in kept.messages:
            if message.stream is not None:
                self.conversation.streams.restore_chunk(message.stream, Chunk(message.sequence, at, None))
            if message.identity is not None:
                accepted = Instant(at.monotonic - max(at.unix - message.accepted_at, 0.0), message.accepted_at)
                forgotten = self._recent.remember(message.identity, message.sequence, accepted, None)
                if forgotten is not None:
                    self._store.forget(self.isolation_key, forgotten)
        if self.conversation.streaming:
            self.lifecycle.look_by(at.monotonic + self._resources.limits.stream_idle_timeout_s)

    # Response streams

    def end_silent_streams(self, at: Instant) -> float:
        """End the streams that have been silent for too long, as far as there is room. Returns when to look again."""
        if not self.conversation.streaming:
            return inf
        streams = self.conversation.streams
        timeout_s = self._resources.limits.stream_idle_timeout_s
        for silent in streams.silent(at.monotonic, timeout_s):
            last = Message("", silent.event_type, b"", reply_to=silent.reply_to, checked=True, stream=silent.place)
            with suppress(SidecarError):
                self._accept(last, at)
                streams.silenced(silent.place.stream_id)
        return streams.next_silence(timeout_s)

    def _recall_chunk(self, message: Message, place: StreamPlace, at: Instant) -> Receipt | PendingReceipt | None:
        known = self.conversation.streams.admit(place, message.reply_to)
        if known is None:
            # The first chunk of a stream that is forgotten by now is a repeat all the same, where it has an id.
            return self._recall(message, at) if message.message_id and not place.position else None
        if known.pending is not None:
            return known.pending.as_duplicate()
        state = self.outbox.state_of(known.sequence) if known.sequence else self._state_of_forgotten(place)
        message_id = message.message_id or (f"{self._message_id_prefix}{known.sequence}" if known.sequence else "")
        return Receipt(message_id, known.sequence, state, self._durability, 0, True, known.accepted.unix)

    def _state_of_forgotten(self, place: StreamPlace) -> DeliveryState:
        """Of a chunk whose sequence is not known any more: acknowledged, where all that it may have been is."""
        oldest = self.conversation.streams.oldest(place.stream_id)
        acknowledged = not self.outbox.entries or 0 < oldest <= self.outbox.acknowledged
        return DeliveryState.ACKNOWLEDGED if acknowledged else DeliveryState.QUEUED

    def _take_chunk(self, message: Message, place: StreamPlace, chunk: Chunk) -> None:
        self.conversation.streams.taken(place, message.reply_to, message.event_type, chunk)
        if place.state is _OPEN:
            self.lifecycle.look_by(chunk.accepted.monotonic + self._resources.limits.stream_idle_timeout_s)
        if place.state is not _OPEN or not place.position:  # each chunk's row carries its place
            self._store.changed(self.isolation_key)

    # Ends

    def _require(self, context: UserExecutionContext) -> None:
        if self.ended:
            raise ManagerGone
        if context is not self.context:
            raise IsolationViolation

    def _detach(self, socket: Socket, code: int, at: Instant) -> None:
        self.primary = None
        self.detached_at = at.monotonic
        self.conversation.left(at, may_come_back=not self.ends_with_socket)
        self.outbox.break_promise()
        self.lifecycle.forget(socket.attach_id)
        self.lifecycle.reschedule()
        self._audit_close(socket, code)

    def _drop_mirror(self, socket: Socket, code: int) -> None:
        del self.mirrors[socket.attach_id]
        self.lifecycle.forget(socket.attach_id)
        self._audit_close(socket, code)

    def _audit_close(self, socket: Socket, code: int) -> None:
        self.context.audit_log_action(AuditEvent.SOCKET_CLOSED, attach_id=socket.attach_id, code=code)
