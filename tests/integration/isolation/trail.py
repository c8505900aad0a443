"""The audit trail against what was done: each event once, with the right identity, and nothing else."""

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.integration.isolation.model import MANAGERS_PER_USER, Context, Credential, Isolation, Person

ADDRESS = "127.0.0.1"
FLOOD_S = 5.0
"""How long a counted record may take; it comes with the next tick."""
Key = tuple[Any, ...]
Record = dict[str, Any]

_EXACT: dict[str, tuple[str, ...]] = {
    "isolation_violation": ("method", "tenant_id", "user_id", "connection_id"),
    "service_denied": ("method", "tenant_id", "user_id"),
    "resume_denied": ("kind", "reason", "tenant_id", "user_id"),
    "connect_refused": ("reason", "tenant_id", "user_id"),
    "token_exchanged": ("tenant_id", "user_id", "connection_id"),
    "token_refreshed": ("tenant_id", "user_id", "connection_id"),
    "token_revoked": ("tenant_id", "user_id", "connection_id"),
    "broadcast": ("tenant_id", "user_id", "connection_id", "scope"),
    "admin_call": ("method",),
}
"""By what the records of an event are told apart."""


class ExpectedTrail:
    """The records that one example must have added."""

    def __init__(self, path: Path, barrier: Callable[[], Awaitable[None]]) -> None:
        self._path = path
        self._offset = path.stat().st_size
        self._barrier = barrier
        self.records: list[Record] = []
        self.exact: Counter[Key] = Counter()
        self.optional: Counter[Key] = Counter()
        self.either: list[frozenset[Key]] = []
        self.floods: Counter[str] = Counter()
        self.refusals: Counter[tuple[str, str]] = Counter()
        """By reason and method."""

    # What must be there

    def expect(self, event: str, *members: Any) -> None:
        self.exact[(event, *members)] += 1

    def expect_either(self, *alternatives: Key) -> None:
        """Exactly one of these: a race decided which."""
        self.either.append(frozenset(alternatives))

    def refused(self, reason: str, method: str, credential: Credential) -> None:
        """A call, an item or a lane was refused."""
        self.refusals[reason, method] += 1
        owner, claimed = credential.token.owner, credential.claimed
        if reason.startswith("TOKEN_"):
            self.floods[ADDRESS] += 1
            return
        if owner is None or claimed is None:
            return
        who = (claimed.tenant, claimed.subject, owner.connection_id)
        if reason == "ISOLATION_VIOLATION":
            self.expect("isolation_violation", method, *who)
        elif reason == "MANAGER_GONE":
            self.expect("token_denied", method, *who)
        elif reason == "SCOPE_MISSING":
            self.floods[f"{ADDRESS} {owner.connection_id}"] += 1

    def refused_or_ended(self, reasons: Iterable[str], method: str, credential: Credential) -> None:
        """One of these refused a call, the other ended a lane, which is recorded only where a token is at fault."""
        for reason in reasons:
            if reason.startswith("TOKEN_"):
                self.refused(reason, method, credential)
            elif reason == "MANAGER_GONE" and credential.claimed is not None and credential.token.owner is not None:
                who = (credential.claimed.tenant, credential.claimed.subject, credential.token.owner.connection_id)
                self.optional["token_denied", method, *who] += 1

    # What is there

    async def check(self, contexts: Iterable[Context], people: Iterable[Person]) -> None:
        """Compare, once everything has come; records of floods come with the next tick."""
        floods: Counter[str] = Counter()
        with suppress(TimeoutError):
            async with asyncio.timeout(FLOOD_S):
                while True:
                    await self._read()
                    floods = _floods(self.records)
                    if all(floods[source] >= count for source, count in self.floods.items()):
                        break
        if floods != self.floods:
            missing, surplus = dict(self.floods - floods), dict(floods - self.floods)
            raise Isolation(f"of refusals by source, the trail lacks {missing} and has beside what was done {surplus}")
        self._check_exact()
        _check_contexts(self.records, {context.connection_id: context for context in contexts}, list(people))

    async def told(self) -> None:
        """Returns when what was counted so far is in the trail."""
        await self._read()
        seen = len(self.records)
        with suppress(TimeoutError):
            async with asyncio.timeout(FLOOD_S):
                while not any(record["event"] == "refusals_counted" for record in self.records[seen:]):
                    await self._read()

    async def _read(self) -> None:
        await self._barrier()
        self.expect("admin_call", "GetSecurityStats")
        with self._path.open("rb") as trail:
            trail.seek(self._offset)
            whole = trail.read().rpartition(b"\n")[0]
        if whole:
            self._offset += len(whole) + 1
            self.records += [json.loads(line) for line in whole.split(b"\n")]

    def _check_exact(self) -> None:
        found = Counter(key for record in self.records if (key := _exact_key(record)) is not None)
        missing, surplus = self.exact - found, found - self.exact
        for alternatives in self.either:
            one = next((key for key in alternatives if surplus[key]), None)
            if one is None:
                raise Isolation(f"none of {alternatives} is in the trail")
            surplus[one] -= 1
        surplus = +surplus - self.optional
        if missing or surplus:
            raise Isolation(f"the trail lacks {dict(missing)} and has beside what was done {dict(surplus)}")


def _exact_key(record: Record) -> Key | None:
    event = record["event"]
    if event == "token_denied" and "connection_id" in record:
        return (event, *(record[name] for name in ("method", "tenant_id", "user_id", "connection_id")))
    if event == "connect_refused" and "tenant_id" not in record:
        return None
    names = _EXACT.get(event)
    return None if names is None else (event, *(record.get(name) for name in names))


def _source(record: Record) -> str:
    """An address, or one context behind it."""
    return " ".join(record[name] for name in ("address", "connection_id") if name in record)


def _floods(records: Iterable[Record]) -> Counter[str]:
    """What was refused singly and counted, by source."""
    found: Counter[str] = Counter()
    for record in records:
        match record["event"]:
            case "refusals_counted":
                found[_source(record)] += record["count"]
            case "scope_denied":
                found[_source(record)] += 1
            case "token_denied" if "connection_id" not in record:
                found[record["address"]] += 1
            case "connect_refused" if "tenant_id" not in record:
                found[record["address"]] += 1
    return found


def managers_at_each_instant(records: Iterable[Record]) -> dict[str, list[tuple[Key, int]]]:
    """How many managers a user had when a context was opened (then with it), closed (then without it) or refused.

    Exact: begin and end of a context are recorded in the step in which they happen, and so is a refusal.
    """
    live: dict[Key, set[str]] = defaultdict(set)
    instants: dict[str, list[tuple[Key, int]]] = {"opened": [], "closed": [], "refused": []}
    for record in records:
        user = (record.get("tenant_id"), record.get("user_id"))
        match record["event"]:
            case "context_opened":
                live[user].add(record["connection_id"])
                instants["opened"].append((user, len(live[user])))
            case "context_closed":
                live[user].remove(record["connection_id"])
                instants["closed"].append((user, len(live[user])))
            case "connect_refused" if record["reason"] == "user_limit":
                instants["refused"].append((user, len(live[user])))
    return instants


def _check_contexts(records: list[Record], known: dict[str, Context], people: list[Person]) -> None:
    """The lives of contexts and sockets, in the order in which they were."""
    instants = managers_at_each_instant(records)
    if any(count > MANAGERS_PER_USER for _, count in instants["opened"]):
        raise Isolation(f"somebody had more managers than allowed: {instants['opened']}")
    assert all(count == MANAGERS_PER_USER for _, count in instants["refused"])
    lives = _Lives(known)
    handlers: dict[str, Callable[[Record], None]] = {
        "context_opened": lives.opened,
        "context_closed": lives.closed,
        "mirror_joined": lives.joined,
        "context_resumed": lives.resumed,
        "token_minted": lives.minted,
        "socket_closed": lives.socket_closed,
        "limit_enforced": lives.enforced,
    }
    others = _EXACT.keys() | {"token_denied", "scope_denied", "refusals_counted"}
    for record in records:
        handler = handlers.get(record["event"])
        if handler is not None:
            handler(record)
        else:
            assert record["event"] in others, record
    lives.check(people)


class _Lives:
    """How every context and socket came and went."""

    def __init__(self, known: dict[str, Context]) -> None:
        self._known = known
        self._opened: dict[str, Record] = {}
        self._closed: dict[str, Record] = {}
        self._joined: dict[str, Record] = {}
        self._resumed: dict[str, Record] = {}
        self._minted: Counter[str] = Counter()
        self._sockets_closed: Counter[str] = Counter()
        self._codes: dict[str, int] = {}
        self._replaced: list[str] = []

    def opened(self, record: Record) -> None:
        name = record["connection_id"]
        assert name not in self._opened, record
        self._opened[name] = record
        context = self._known.get(name)
        if context is not None:
            person = context.person
            assert (record["tenant_id"], record["user_id"]) == (person.tenant, person.subject)
            assert record["session_id"] == context.welcome["session_id"]
            assert record["attach_id"] == context.welcome["attach_id"]

    def closed(self, record: Record) -> None:
        name = record["connection_id"]
        assert name in self._opened, record
        assert name not in self._closed, record
        self._closed[name] = record
        context = self._known.get(name)
        if context is not None and record["reason"] not in context.end_reasons:
            raise Isolation(f"{context} ended for {record['reason']}: {context.end_reasons}")

    def joined(self, record: Record) -> None:
        assert record["attach_id"] not in self._joined, record
        self._joined[record["attach_id"]] = record

    def resumed(self, record: Record) -> None:
        assert record["attach_id"] not in self._resumed, record
        self._resumed[record["attach_id"]] = record

    def minted(self, record: Record) -> None:
        self._minted[record["attach_id"]] += 1

    def socket_closed(self, record: Record) -> None:
        self._sockets_closed[record["attach_id"]] += 1
        self._codes[record["attach_id"]] = record["code"]

    def enforced(self, record: Record) -> None:
        assert record["limit"] == "managers_per_user"
        self._replaced.append(record["connection_id"])

    def check(self, people: list[Person]) -> None:
        _check_equal("context_closed", Counter(self._closed.keys()), Counter(self._opened.keys()))
        assert self._known.keys() <= self._opened.keys()
        replaced = [name for name, record in self._closed.items() if record["reason"] == "replaced"]
        _check_equal("limit_enforced", Counter(self._replaced), Counter(replaced))
        unknown = [self._opened[name] for name in self._opened.keys() - self._known.keys()]
        found = Counter((record["tenant_id"], record["user_id"]) for record in unknown)
        assert found == +Counter({(person.tenant, person.subject): person.unwelcomed for person in people})
        self._check_sockets(unknown)

    def _check_sockets(self, unknown: list[Record]) -> None:
        contexts = self._known.values()
        screens = {screen.attach_id: screen for context in contexts for screen in context.all_screens}
        mirrors = {mirror.attach_id: context for context in contexts for mirror in context.mirrors}
        for name, context in mirrors.items():
            assert self._joined[name]["connection_id"] == context.connection_id
        # Recorded, then refused: somebody else had come first, or it had ended, and the socket got a fresh context.
        never = Counter(self._joined[name]["connection_id"] for name in self._joined.keys() - mirrors.keys())
        for name, count in never.items():
            assert count <= self._known[name].joins_refused
        self._check_returns()
        opened = [str(context.welcome["attach_id"]) for context in contexts]
        opened += [record["attach_id"] for record in unknown]
        given = Counter(opened) + Counter(self._joined.keys()) + Counter(self._resumed.keys())
        _check_equal("token_minted", self._minted, given)
        back = [screen.attach_id for context in contexts for screen in context.primaries if screen.attempt]
        closed = Counter(opened) + Counter(back) + Counter(mirrors.keys())
        _check_equal("socket_closed", self._sockets_closed, closed)
        for name, screen in screens.items():
            assert screen.leaving or self._codes[name] == screen.closed, f"{screen}: {self._codes[name]}"

    def _check_returns(self) -> None:
        """Each that was welcomed back was recorded before; one that was recorded and not welcomed was refused then."""
        never = dict(self._resumed)
        for context in self._known.values():
            for screen in context.primaries:
                if screen.attempt:
                    record = never.pop(screen.attach_id)
                    assert (record["connection_id"], record["attempt"]) == (context.connection_id, screen.attempt)
        for name, count in Counter(record["connection_id"] for record in never.values()).items():
            assert count <= self._known[name].returns_refused


def _check_equal(event: str, found: Counter[str], expected: Counter[str]) -> None:
    if found != expected:
        missing, surplus = dict(expected - found), dict(found - expected)
        raise Isolation(f"of {event} by socket, the trail lacks {missing} and has beside what was done {surplus}")
