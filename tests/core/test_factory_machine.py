"""The factory and its tick against a model that looks at everybody every second: no limit broken, no due missed."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sidecar.core.close_codes import CloseCode, catalogued
from sidecar.core.errors import ErrorReason, ManagerGone, SidecarError
from sidecar.core.events import TokenExpiring
from sidecar.core.identity import UserIdentity
from sidecar.core.limits import Limits
from sidecar.core.manager import IsolatedWebSocketManager
from sidecar.core.outbox import OutboxLimits
from sidecar.core.ports import AuditEvent
from tests.support.core import Core, attempt
from tests.support.doubles import RecordingSocket

IDLE_S, WINDOW_S, INTERVAL_S, PONG_S, SLOW_S = 1800.0, 120.0, 60.0, 20.0, 30.0
LIMITS = Limits(max_managers=14, outbox=OutboxLimits(ttl_s=45.0))
USERS = [("acme", "alice"), ("acme", "bob"), ("other", "alice"), ("other", "carol")]
WHO = st.integers(0, len(USERS) - 1)
WHICH = st.integers(0, 30)
TOKEN_LIVES = st.sampled_from([30, 61, 300, 100_000])


@dataclass
class Health:
    """What the model knows of one socket, in monotonic seconds."""

    socket: RecordingSocket
    token_ends_at: float
    next_ping_at: float
    answers: bool
    pinged_at: float | None = None
    blocked_since: float | None = None
    pings: int = 0
    warnings: int = 0
    warned: bool = False
    closed: int | None = None

    def look(self, now: float) -> None:
        """What a look at this socket at this second must lead to."""
        blocked = self.blocked_since is not None  # then nothing is read, so that no pong can be missed
        if now >= self.token_ends_at:
            self.closed = CloseCode.TOKEN_EXPIRED
        elif self.blocked_since is not None and now >= self.blocked_since + SLOW_S:
            self.closed = CloseCode.SLOW_CONSUMER
        elif not blocked and self.pinged_at is not None and now >= self.pinged_at + PONG_S:
            self.closed = CloseCode.PONG_TIMEOUT
        else:
            if not self.warned and now >= self.token_ends_at - 60.0:
                self.warned = True
                self.warnings += 1
            if self.pinged_at is None and not blocked and now >= self.next_ping_at:
                self.pings += 1
                self.pinged_at, self.next_ping_at = now, now + INTERVAL_S


@dataclass
class Session:
    """What the model knows of one context."""

    manager: IsolatedWebSocketManager
    user: int
    number: int
    created_at: float
    active_at: float
    detached_at: float | None
    primary: Health | None = None
    mirrors: list[Health] = field(default_factory=list)
    gone: list[Health] = field(default_factory=list)
    ended: str | None = None

    @property
    def sockets(self) -> list[Health]:
        return ([self.primary] if self.primary else []) + self.mirrors

    def end(self, reason: str, code: int) -> None:
        self.ended = reason
        for health in self.sockets:
            health.closed = code
        self.gone += self.sockets
        self.primary, self.mirrors = None, []

    def look(self, now: float) -> None:
        """What a look at this context at this second must lead to."""
        if self.detached_at is not None and now >= self.detached_at + WINDOW_S:
            self.end("resume_window_over", CloseCode.GOING_AWAY)
            return
        if now >= self.active_at + IDLE_S:
            self.end("idle", CloseCode.IDLE)
            return
        for health in self.sockets:
            health.look(now)
        if self.primary is not None and self.primary.closed:
            self.detached_at = now
        self.settle()

    def settle(self) -> None:
        """Let go of the sockets that have closed."""
        self.gone += [health for health in self.sockets if health.closed]
        self.mirrors = [health for health in self.mirrors if not health.closed]
        if self.primary is not None and self.primary.closed:
            self.primary = None


class ManyUsers(RuleBasedStateMachine):
    """Users who connect, come back, fall silent and are ended, with a tick a second and a clock that people set."""

    @initialize()
    def start(self) -> None:
        self.core = Core(LIMITS)
        self.sessions: list[Session] = []
        self.refusals = 0

    @property
    def live(self) -> list[Session]:
        return [session for session in self.sessions if session.ended is None]

    def pick(self, which: int) -> Session:
        return self.live[which % len(self.live)]

    def now(self) -> float:
        return self.core.clock.monotonic()

    # Contexts

    @rule(who=WHO, attached=st.booleans(), answers=st.booleans(), life_s=TOKEN_LIVES)
    def connect(self, who: int, attached: bool, answers: bool, life_s: int) -> None:
        tenant_id, user_id = USERS[who]
        own = [session for session in self.live if session.user == who]
        detached = [session for session in own if session.detached_at is not None]
        expected = None
        if len(self.live) >= LIMITS.max_managers:
            expected = ErrorReason.RATE_LIMITED
        elif len(own) >= LIMITS.managers_per_user and not detached:
            expected = ErrorReason.USER_LIMIT
        made = attempt(lambda: self.core.create(user_id, tenant_id))
        if isinstance(made, SidecarError):
            assert made.reason is expected
            self.refusals += made.reason is ErrorReason.USER_LIMIT
            return
        assert expected is None
        if len(own) >= LIMITS.managers_per_user:
            longest = min(detached, key=lambda session: (session.detached_at, session.number))
            longest.end("replaced", CloseCode.REPLACED)
        session = Session(made, who, len(self.sessions), self.now(), self.now(), self.now())
        self.sessions.append(session)
        if attached:
            session.primary = self.attach(session, answers, life_s)
            session.detached_at = None

    def attach(self, session: Session, answers: bool, life_s: int, *, mirror: bool = False) -> Health:
        socket = self.core.attach(session.manager, mirror=mirror, token_life_s=life_s)
        # A token's end is whole Unix seconds: the fraction of this second is not the client's.
        life = int(self.core.clock.time() + life_s) - self.core.clock.time()
        return Health(socket, self.now() + life, self.now() + INTERVAL_S, answers)

    @precondition(lambda self: self.live)
    @rule(which=WHICH, answers=st.booleans(), life_s=TOKEN_LIVES)
    def come_back(self, which: int, answers: bool, life_s: int) -> None:
        session = self.pick(which)
        if session.primary is not None:
            session.primary.closed = CloseCode.TAKEN_OVER
            session.settle()
        session.primary = self.attach(session, answers, life_s)
        session.detached_at = None

    @precondition(lambda self: self.live)
    @rule(which=WHICH, answers=st.booleans(), life_s=TOKEN_LIVES)
    def join(self, which: int, answers: bool, life_s: int) -> None:
        session = self.pick(which)
        if len(session.mirrors) < 9:
            session.mirrors.append(self.attach(session, answers, life_s, mirror=True))

    @precondition(lambda self: self.live)
    @rule(which=WHICH, code=st.sampled_from([1000, 1001, 1006]))
    def lose(self, which: int, code: int) -> None:
        session = self.pick(which)
        if session.primary is None:
            return
        self.core.lose(session.manager, session.primary.socket, code)
        session.primary = None  # it closed itself: nothing was sent to it, and nothing more will be
        session.detached_at = self.now()
        if code == 1000:
            session.end("client_closed", CloseCode.GOING_AWAY)

    @precondition(lambda self: self.live)
    @rule(which=WHICH, way=st.integers(0, 3))
    def end(self, which: int, way: int) -> None:
        session, at = self.pick(which), self.core.clock.now()
        manager = session.manager
        close = catalogued(CloseCode.CLOSED_BY_SERVICE)
        sockets = len(session.sockets)
        if way == 0:
            assert self.core.factory.cleanup_manager(manager.isolation_key, close, "operator", at) == sockets
        elif way == 1:
            assert manager.cleanup_all_connections(manager.context, close, "operator", at) == sockets
        else:
            manager.context.cleanup_resources("operator")
            close = catalogued(CloseCode.GOING_AWAY)
        session.end("operator", close.code)

    @rule(who=WHO)
    def enforce(self, who: int) -> None:
        tenant_id, user_id = USERS[who]
        own = [session for session in self.live if session.user == who]
        sockets = sum(len(session.sockets) for session in own)
        for session in own:
            session.look(self.now())
        left = sum(len(session.sockets) for session in own)
        ended = sum(session.ended is not None for session in own)
        answer = self.core.factory.enforce_resource_limits(UserIdentity(tenant_id, user_id), self.core.clock.now())
        assert answer == (ended, sockets - left)

    # Sockets

    @precondition(lambda self: self.live)
    @rule(which=WHICH)
    def send(self, which: int) -> None:
        session = self.pick(which)
        for mirror in session.mirrors:
            if mirror.blocked_since is not None:
                mirror.closed = CloseCode.SLOW_CONSUMER
        session.settle()
        if not isinstance(attempt(lambda: self.core.send(session.manager)), SidecarError):
            session.active_at = self.now()

    @precondition(lambda self: self.live)
    @rule(which=WHICH)
    def pause_or_take_more(self, which: int) -> None:
        for health in self.pick(which).sockets:
            if health.blocked_since is None:
                health.blocked_since = self.now()
                self.core.pause(self.pick(which).manager, health.socket)
            else:
                health.blocked_since = health.pinged_at = None
                self.core.resume(self.pick(which).manager, health.socket)

    @precondition(lambda self: self.live)
    @rule(which=WHICH)
    def answer_or_not(self, which: int) -> None:
        for health in self.pick(which).sockets:
            health.answers = not health.answers

    @precondition(lambda self: self.live)
    @rule(which=WHICH, life_s=TOKEN_LIVES)
    def refresh(self, which: int, life_s: int) -> None:
        session, at = self.pick(which), self.core.clock.now()
        for health in session.sockets:
            session.manager.lifecycle.token_refreshed(health.socket.attach_id, int(at.unix + life_s), at)
            health.token_ends_at = at.monotonic + int(at.unix + life_s) - at.unix
            health.warned = False

    # Time

    @rule(seconds=st.integers(1, 70), step=st.sampled_from([0.0, 0.0, 600.0, -600.0]))
    def seconds_pass(self, seconds: int, step: float) -> None:
        self.core.clock.step_wall(step)
        for _ in range(seconds):
            self.second()

    @rule(minutes=st.integers(20, 30))
    def nothing_happens_for_long(self, minutes: int) -> None:
        """Only those who answer their pings live on; ticks a second apart all the same."""
        for _ in range(minutes * 60):
            if not self.live:
                break
            self.second()

    def second(self) -> None:
        self.core.tick(1.0)
        now = self.now()
        for session in self.live:
            session.look(now)
            for health in session.sockets:
                if health.answers and health.pinged_at is not None:
                    health.pinged_at = None
                    session.manager.lifecycle.pong_received(health.socket.attach_id)

    # What holds at every step

    @invariant()
    def everything_holds(self) -> None:
        self.those_who_live_are_the_models()
        self.limits_hold()
        self.statistics_are_truthful()
        self.sockets_saw_what_was_due()

    def those_who_live_are_the_models(self) -> None:
        factory = self.core.factory
        assert list(factory) == [session.manager for session in self.live]
        for session in self.sessions:
            manager, key = session.manager, session.manager.isolation_key
            assert manager.ended is (session.ended is not None)
            found = attempt(lambda key=key: factory.get_manager(key))  # type: ignore[misc]
            assert found is manager or (isinstance(found, ManagerGone) and manager.ended)
            assert manager.connections == tuple(health.socket for health in session.sockets)
            assert manager.context.active_connections == manager.connections
            if manager.ended:
                assert (manager.outbox.entries, manager.outbox.queued_bytes) == ({}, 0)
            else:
                assert manager.detached_at == session.detached_at
                assert manager.last_activity.monotonic == session.active_at
        ended = [record.context for record in self.core.audit.of(AuditEvent.CONTEXT_CLOSED)]
        assert len(ended) == len(set(ended)) == len(self.sessions) - len(self.live)
        said = {record.context: record.fields["reason"] for record in self.core.audit.of(AuditEvent.CONTEXT_CLOSED)}
        assert said == {session.manager.context: session.ended for session in self.sessions if session.ended}

    def limits_hold(self) -> None:
        assert len(self.core.factory) <= LIMITS.max_managers
        for who, (tenant_id, user_id) in enumerate(USERS):
            managers = self.core.factory.managers_of_user(UserIdentity(tenant_id, user_id))
            assert managers == tuple(session.manager for session in self.live if session.user == who)
            assert len(managers) <= 5
            account = self.core.factory._resources.account_of(UserIdentity(tenant_id, user_id))
            assert (account is None) is (not managers)
            if account is not None:
                assert account.queued_bytes == sum(manager.outbox.queued_bytes for manager in managers)

    def statistics_are_truthful(self) -> None:
        stats = self.core.factory.get_factory_stats()
        assert stats.total_managers_created == len(self.sessions)
        assert stats.active_managers == len(self.live)
        assert stats.managers_cleaned_up == len(self.sessions) - len(self.live)
        assert stats.users_with_active_managers == len({session.user for session in self.live})
        replaced = sum(session.ended == "replaced" for session in self.sessions)
        assert stats.resource_limit_hits == self.refusals + replaced
        assert self.core.counters.resource_limit_enforcements == self.refusals + replaced

    def sockets_saw_what_was_due(self) -> None:
        for session in self.sessions:
            for health in session.sockets + session.gone:
                closed = health.socket.closed_with
                assert (closed.code if closed else None) == health.closed
                assert len(health.socket.closes) <= 1
                assert len(health.socket.pings) == health.pings
                assert sum(isinstance(event, TokenExpiring) for event in health.socket.events) == health.warnings

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        self.core.factory.end_all(catalogued(CloseCode.RESTART), "stopped", self.core.clock.now())
        for session in self.live:
            session.end("stopped", CloseCode.RESTART)
        self.everything_holds()
        assert len(self.core.factory) == 0
        self.core.tick(100_000.0)
        assert self.core.factory._due == []


TestManyUsers = ManyUsers.TestCase
TestManyUsers.settings = settings(max_examples=60, stateful_step_count=40, derandomize=True, database=None)
