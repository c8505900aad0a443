"""What was observed of a run, from outside: what senders asked for and were answered, and what came on every socket.

Every observation has a number; they rise in the order in which one program saw them, so `a < b` is "a was seen first".
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple

DISK, MEMORY = "DISK", "MEMORY"
NEVER = 2**62
RESUMED = {"full", "gap"}
"""The recoveries that go on with the context that was asked for."""


@dataclass
class Context:
    """One connection context: `durability` is what its store gives; `ended` says why it has ended, where known."""

    connection_id: str
    isolation_key: str
    tenant: str
    user: str
    durability: str
    born: int
    ended: str = ""
    tokens: list[str] = field(default_factory=list, repr=False)
    """The context tokens that its client was given, oldest first."""

    def __str__(self) -> str:
        return f"{self.connection_id} of {self.tenant}/{self.user}"


class Receipt(NamedTuple):
    """What an OK said."""

    message_id: str
    sequence: int
    durability: str
    state: str = "QUEUED"
    duplicate: bool = False


@dataclass
class Try:
    """One call for one message. Without a receipt or a refusal nobody knows what became of it."""

    began: int
    ended: int = NEVER
    receipt: Receipt | None = None
    refused: str = ""
    """The reason of a definite refusal."""


@dataclass
class Attempt:
    """A message that somebody asked for, once or, with a message_id, until it was answered."""

    uuid: str
    context: Context
    sender: str
    n: int
    message_id: str = ""
    critical: bool = False
    ttl_s: float | None = None
    filler: str = ""
    """Makes it large."""
    tries: list[Try] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.sender}#{self.n} {self.uuid} (id {self.message_id or 'none'})"

    @property
    def document(self) -> dict[str, Any]:
        """The payload: whose it is, and that it is itself."""
        return {
            "tenant": self.context.tenant,
            "user": self.context.user,
            "context": self.context.connection_id,
            "sender": self.sender,
            "n": self.n,
            "uuid": self.uuid,
        } | ({"filler": self.filler} if self.filler else {})

    @property
    def payload(self) -> bytes:
        return json.dumps(self.document).encode()

    @property
    def receipts(self) -> list[Receipt]:
        return [one.receipt for one in self.tries if one.receipt is not None]

    @property
    def refused(self) -> bool:
        """Every call for it was refused, and definitely."""
        return bool(self.tries) and all(one.refused for one in self.tries)

    @property
    def open(self) -> bool:
        """It may have been accepted, and nobody was told."""
        return not self.receipts and not self.refused


class Message(NamedTuple):
    """A message as it came on a socket."""

    seen: int
    sequence: int
    message_id: str
    document: Any


class Gap(NamedTuple):
    """What was announced as not kept."""

    seen: int
    first: int
    last: int
    reason: str


@dataclass
class Attach:
    """One welcomed socket. `claimed` is the hello's last_sequence, `position` the welcome's sequence."""

    attach_id: str
    context: Context
    asked: int
    opened: int
    recovery: str
    claimed: int
    position: int
    frames: list[Message | Gap] = field(default_factory=list)
    closed: int | None = None

    def __str__(self) -> str:
        return f"{self.attach_id} ({self.recovery}) of {self.context}"

    @property
    def mirror(self) -> bool:
        return self.recovery == "mirror"

    @property
    def messages(self) -> list[Message]:
        return [frame for frame in self.frames if isinstance(frame, Message)]

    @property
    def gaps(self) -> list[Gap]:
        return [frame for frame in self.frames if isinstance(frame, Gap)]


class Denial(NamedTuple):
    """A resume that was answered `denied`."""

    asked: int
    seen: int
    context: Context


class Acknowledged(NamedTuple):
    """A client has everything up to `sequence`: it said so, or the sidecar says that it did."""

    seen: int
    context: Context
    sequence: int


class Dropped(NamedTuple):
    """A service was told that these are not kept, and will be announced as a gap."""

    seen: int
    context: Context
    first: int
    last: int


class Count(NamedTuple):
    """How many messages a context's statistics say that it took."""

    context: Context
    messages: int


class Leftover(NamedTuple):
    """Something that was counted before the first user came and after the last had gone."""

    what: str
    before: int
    after: int


class History:
    """Records; what to think of it is the invariants' business."""

    def __init__(self) -> None:
        self.contexts: dict[str, Context] = {}
        self.attempts: dict[str, Attempt] = {}
        self.attaches: list[Attach] = []
        self.denials: list[Denial] = []
        self.given: list[Acknowledged] = []
        """What clients said."""
        self.acknowledged: list[Acknowledged] = []
        """What the sidecar has read of that, as far as it told."""
        self.dropped: list[Dropped] = []
        self.counts: list[Count] = []
        self.leftovers: list[Leftover] = []
        self.close_codes: list[tuple[str, int]] = []
        """Who was closed, and with which code."""
        self.deaths: list[int] = []
        """When the sidecar's process ended."""
        self._numbers = count(1)
        self._tally: Counter[str] = Counter()
        self._due: list[tuple[str, int, Callable[[], object]]] = []

    def now(self) -> int:
        """The number of the next observation."""
        return next(self._numbers)

    def at(self, what: str, times: int, act: Callable[[], object]) -> None:
        """Do that in the very step in which so many more `answers`, `frames` or `welcomes` were seen from now on."""
        self._due.append((what, self._tally[what] + times, act))

    def _count(self, what: str) -> None:
        self._tally[what] += 1
        for due in [one for one in self._due if one[0] == what and one[1] <= self._tally[what]]:
            self._due.remove(due)
            due[2]()

    # The client's side

    def welcomed(  # every argument is an observation of its own
        self,
        person: tuple[str, str],
        welcome: dict[str, Any],
        *,
        asked: int,
        durability: str,
        former: Context | None = None,
        claimed: int = 0,
    ) -> Attach:
        """A socket of (tenant, user) was welcomed; `former` and `claimed` are what its hello asked to resume."""
        opened = self.now()
        connection_id = welcome["connection_id"]
        if connection_id not in self.contexts:
            key = welcome["isolation_key"]
            self.contexts[connection_id] = Context(connection_id, key, *person, durability, opened)
        if former is not None and welcome["recovery"] == "denied":
            self.denials.append(Denial(asked, opened, former))
        context = self.contexts[connection_id]
        recovery, position = welcome["recovery"], welcome["sequence"]
        claimed = claimed if recovery in RESUMED else 0
        attach = Attach(welcome["attach_id"], context, asked, opened, recovery, claimed, position)
        self.attaches.append(attach)
        self._count("welcomes")
        return attach

    def came(self, attach: Attach, frame: dict[str, Any]) -> None:
        """A message or a gap came on that socket."""
        if frame["type"] == "message":
            attach.frames.append(Message(self.now(), frame["sequence"], frame["id"], frame["data"]))
        else:
            attach.frames.append(Gap(self.now(), frame["from"], frame["to"], frame["reason"]))
        self._count("frames")

    def acknowledges(self, context: Context, sequence: int) -> None:
        """The client says so, in an acknowledgement or in a hello. Nobody knows yet whether it is read."""
        self.given.append(Acknowledged(self.now(), context, sequence))

    def acknowledgement_read(self, context: Context, sequence: int) -> None:
        """The sidecar answered what was sent after that acknowledgement, or told a service of it."""
        self.acknowledged.append(Acknowledged(self.now(), context, sequence))

    def closed(self, who: str, code: int, attach: Attach | None = None) -> None:
        """A socket was closed, with 1006 where there was no close frame; `attach` None: it was never welcomed."""
        self.close_codes.append((who, code))
        if attach is not None:
            attach.closed = code

    # The sender's side

    def asked_for(self, attempt: Attempt) -> Attempt:
        """Somebody is going to send that."""
        self.attempts[attempt.uuid] = attempt
        return attempt

    def begins(self, attempt: Attempt) -> Try:
        """A call for it begins."""
        attempt.tries.append(Try(self.now()))
        return attempt.tries[-1]

    def told_dropped(self, context: Context, first: int, last: int) -> None:
        """A service was told so."""
        self.dropped.append(Dropped(self.now(), context, first, last))

    def answered(self, one: Try, receipt: Receipt | None = None, refused: str = "") -> None:
        """The call's answer; neither a receipt nor a refusal: it broke off."""
        one.ended, one.receipt, one.refused = self.now(), receipt, refused
        self._count("answers")

    # The end

    def died(self) -> None:
        """The sidecar's process ended, or is about to."""
        self.deaths.append(self.now())

    def ended(self, connection_id: str, reason: str) -> None:
        """That context has ended: the audit trail says so, or its only memory is gone."""
        if connection_id in self.contexts:
            self.contexts[connection_id].ended = reason

    def primaries(self, context: Context) -> list[Attach]:
        """The sockets of that context but for its mirrors, in the order of their welcomes."""
        return [attach for attach in self.attaches if attach.context is context and not attach.mirror]

    def accepted(self) -> Iterator[tuple[Attempt, Try, Receipt]]:
        """Every OK."""
        for attempt in self.attempts.values():
            for one in attempt.tries:
                if one.receipt is not None:
                    yield attempt, one, one.receipt
