"""What a bystander may conclude of a running sidecar: which contexts live, which tokens open them, who may hear what.

Many calls are under way at once, so a fact is held in two forms: what may be so (set before a call that can bring it
about) and what is so (set after its answer). Where both outcomes of a race are right, both are allowed; what isolation
forbids never is.
"""

from __future__ import annotations

import json
import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.integration.isolation.screens import Screen

MANAGERS_PER_USER = 5
SOCKETS_PER_MANAGER = 10
CRITICAL_RESERVE = 4
CLIENT_SCOPES = frozenset({"send", "emit", "stats"})
EVERY_SCOPE = CLIENT_SCOPES | {"close", "broadcast:user", "broadcast:tenant"}
DETACHED_CODES = frozenset({1001, 4508})
"""What a mirror is told when its detached context ends: its time is over, or a new context replaces it."""


class Isolation(AssertionError):
    """Something came where it must not, or changed what it must not."""


@dataclass(eq=False)
class Person:
    """One user of one tenant, and what is under way for all of their contexts together."""

    tenant: str
    subject: str
    connects: int = 0
    """Begun in this step."""
    disconnecting: bool = False
    """An operator's DisconnectUser was begun in this step."""
    unwelcomed: int = 0
    """Contexts that an operator ended before their client was welcomed."""

    def __repr__(self) -> str:
        return f"{self.tenant}/{self.subject}"


@dataclass(eq=False)
class Family:
    """A token and those refreshed from it."""

    may_be_revoked: bool = False
    revoked: bool = False


@dataclass(eq=False)
class Token:
    """A context token as its bearer knows it. `fault` is the reason with which every verifier refuses it."""

    text: str = field(repr=False)
    owner: Context | None = None
    scopes: frozenset[str] = frozenset()
    fault: str = ""
    claimed: Person | None = None
    """Who the token says the user is, where that is not the owner of the context that it names."""
    family: Family = field(default_factory=Family)
    former: bool = False
    """Its client came back since, and was given another."""


@dataclass(eq=False)
class Context:
    """One connection context, from its welcome on."""

    person: Person
    welcome: dict[str, Any] = field(repr=False)
    primary: Screen = field(init=False, repr=False)
    primaries: list[Screen] = field(default_factory=list, repr=False)
    """All that there ever were; all but one are fenced, or were lost before."""
    mirrors: list[Screen] = field(default_factory=list, repr=False)
    tokens: dict[str, Token] = field(default_factory=dict, repr=False)
    may_end: bool = False
    ended: bool = False
    may_detach: bool = False
    may_stall: bool = False
    acknowledging: bool = False
    close_codes: set[int] = field(default_factory=set)
    """What its sockets may be told in the end, by all that was done to it."""
    end_reasons: set[str] = field(default_factory=set)
    accepted: dict[int, Attempt] = field(default_factory=dict, repr=False)
    """By sequence, as receipts said."""
    owed: list[Attempt] = field(default_factory=list, repr=False)
    """Broadcasts that it must have."""
    failed: int = 0
    born: int = 0
    """The step in which it was made."""
    offered_critical: int = 0
    accepted_critical: int = 0
    duplicates: int = 0
    joins: int = 0
    """Begun in this step."""
    joins_refused: int = 0
    returns: int = 0
    """Of its client, begun in this step."""
    returns_refused: int = 0
    attempt: int = 0
    """The highest that a hello of its client has named."""
    seen_attempt: int = 0
    """The highest that the sidecar is known to have seen."""
    claimed: int = 0
    """Up to here its client may have acknowledged, by a frame or as it came back."""
    offered: dict[str, set[str]] = field(default_factory=dict, repr=False)
    """Which payloads were offered under each message_id."""

    def __repr__(self) -> str:
        state = "ended" if self.ended else "may have ended" if self.may_end else "live"
        return f"<{self.person} {self.connection_id[:8]} {state}>"

    @property
    def connection_id(self) -> str:
        return str(self.welcome["connection_id"])

    @property
    def key(self) -> str:
        return str(self.welcome["isolation_key"])

    @property
    def screens(self) -> list[Screen]:
        return [self.primary, *self.mirrors]

    @property
    def former_primaries(self) -> list[Screen]:
        return [screen for screen in self.primaries if screen is not self.primary]

    @property
    def all_screens(self) -> list[Screen]:
        return [*self.primaries, *self.mirrors]

    @property
    def flowing(self) -> bool:
        """Its client is there and reads."""
        return not (self.ended or self.may_end or self.may_detach or self.may_stall)

    def may_close(self, reason: str, *codes: int) -> None:
        """Something was begun that can end the context."""
        self.may_end = True
        self.end_reasons.add(reason)
        self.close_codes.update(codes)

    def may_be_left(self) -> None:
        """Something was begun that can lose the primary; then the context waits, and ends of itself."""
        self.may_detach = True
        self.may_close("resume_window_over", *DETACHED_CODES)
        self.end_reasons.add("replaced")

    def attach(self, screen: Screen) -> None:
        """A primary was welcomed: the one, unless a later attempt was before it."""
        self.primaries.append(screen)
        if len(self.primaries) == 1 or screen.attempt > self.primary.attempt:
            self.primary = screen

    def take(self, sequence: int, attempt: Attempt, duplicate: bool) -> None:
        """A receipt said so: one message, one sequence; one sequence, one message."""
        known = self.accepted.setdefault(sequence, attempt)
        if known is not attempt:
            raise Isolation(f"sequence {sequence} of {self} is both {known} and {attempt}")
        self.duplicates += duplicate
        attempt.taken(self, sequence, duplicate)


@dataclass(eq=False)
class Attempt:
    """One payload that somebody tried to send, and where it may go.

    `reach` is "context", "user" or "tenant", of each of `targets`; without targets it may go nowhere.
    """

    sender: str
    targets: tuple[Context, ...] = ()
    reach: str = "context"
    message_id: str = ""
    ttl_s: float | None = None
    critical: bool = False
    size: int = 0
    number: int = 0
    answer: str = ""
    """"ok", a reason, or nothing while there is none."""
    sequences: dict[str, int] = field(default_factory=dict)
    firsts: Counter[str] = field(default_factory=Counter)
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __repr__(self) -> str:
        return f"<{self.number} by {self.sender} for {self.reach} of {self.targets}: {self.answer or 'unanswered'}>"

    @property
    def document(self) -> dict[str, Any]:
        """The payload: it names its owner."""
        owner = self.targets[0] if self.targets else None
        return {
            "tenant": owner.person.tenant if owner else None,
            "user": owner.person.subject if owner and self.reach != "tenant" else None,
            "context": owner.connection_id if owner and self.reach == "context" else None,
            "sender": self.sender,
            "n": self.number,
            "uuid": self.id,
            "filler": "x" * self.size,
        }

    @property
    def payload(self) -> bytes:
        return json.dumps(self.document).encode()

    def may_reach(self, context: Context) -> bool:
        """Whether somebody with the right to do so sent it there."""
        if self.reach == "context":
            return context in self.targets
        if self.reach == "user":
            return any(target.person is context.person for target in self.targets)
        return any(target.person.tenant == context.person.tenant for target in self.targets)

    def taken(self, context: Context, sequence: int, duplicate: bool) -> None:
        """Accepted there as `sequence`."""
        self.answer = "ok"
        known = self.sequences.setdefault(context.connection_id, sequence)
        if known != sequence:
            raise Isolation(f"{self} has the sequences {known} and {sequence} in {context}")
        self.firsts[context.connection_id] += not duplicate
        if self.firsts[context.connection_id] > 1:
            raise Isolation(f"{self} was accepted twice in {context}")


@dataclass(frozen=True)
class Verdict:
    """How a call may end: OK, where `ok`, or one of `reasons`."""

    ok: bool
    reasons: frozenset[str]


@dataclass(eq=False)
class Credential:
    """A key and the token that it is asked for with, and what was known of both when the call began."""

    key: str
    token: Token
    expected_user_id: str = ""

    def __post_init__(self) -> None:
        owner = self.token.owner
        self.was_ended = owner is not None and owner.ended
        self.was_revoked = self.token.family.revoked

    @property
    def claimed(self) -> Person | None:
        """Who the token says the user is."""
        owner = self.token.owner
        return self.token.claimed or (None if owner is None else owner.person)

    @property
    def mismatched(self) -> bool:
        """The token does not open what is asked for, or not for whom it is asked."""
        owner, claimed = self.token.owner, self.claimed
        if owner is None or claimed is None:
            return False
        return self.key not in {"", owner.key} or self.expected_user_id not in {"", claimed.subject}

    @property
    def may_open(self) -> Context | None:
        """The context that a message sent so may reach; None when none may."""
        if self.token.fault or self.mismatched or self.token.claimed is not None or self.was_ended:
            return None
        return self.token.owner

    def verdict(self, scope: str) -> Verdict:
        """What the answer may be, by what is known now that there is one."""
        token, owner = self.token, self.token.owner
        if token.fault or owner is None:
            return Verdict(False, frozenset({token.fault}))
        reasons: set[str] = set()
        if token.family.may_be_revoked or token.family.revoked:
            reasons.add("TOKEN_REVOKED")
        # A context that ends takes its revocations with it: its tokens open nothing any more.
        if self.was_revoked and not owner.may_end:
            return Verdict(False, frozenset(reasons))
        ok, further = self._after_token(scope, owner)
        return Verdict(ok and not self.was_revoked, frozenset(reasons | further))

    def _after_token(self, scope: str, owner: Context) -> tuple[bool, set[str]]:
        if self.mismatched:
            return False, {"ISOLATION_VIOLATION"}
        if scope and scope not in self.token.scopes:
            return False, {"SCOPE_MISSING"}
        gone = {"MANAGER_GONE"} if owner.may_end or owner.ended else set[str]()
        if self.was_ended:
            return False, gone
        if self.token.claimed is not None:
            return False, gone | {"ISOLATION_VIOLATION"}
        return True, gone
