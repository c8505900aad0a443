"""What must hold of every history of a run, by the numbers of the project's invariants; each breach is one line.

1 no frame on a socket of another user · 2 none of another context of the same user · 3 a call changes its own context
only · 4 sequences rise by one, gaps only where announced · 5 what did not come is what was announced, and what is told
to be dropped did not come · 6 one payload a sequence · 7 the head never goes back · 8 every OK is delivered, announced
as a gap, or its context has ended · 9 every frame was asked for, none after a definite refusal · 10 one message, one
sequence, whoever asks again · 11 a recovery is what it says · 12 nothing acknowledged is sent again, and nothing else
is said to be acknowledged · 13 a fenced socket receives nothing · 16 nothing is left · 30 every close has a documented
code.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate, pairwise
from typing import NamedTuple

from sidecar.core.close_codes import CloseCode
from tests.faults.history import DISK, NEVER, RESUMED, Attach, Attempt, Context, Gap, History, Message

OWN_CODES = range(4900, 5000)
LOST = 1006
MAX_SHOWN = 300
"""Characters of a payload in a line."""


class Violation(NamedTuple):
    """An invariant that does not hold, and of what."""

    number: int
    text: str

    def __str__(self) -> str:
        return f"invariant {self.number}: {self.text}"


Violations = Iterator[Violation]


def violations(history: History, *, settled: bool = True) -> list[Violation]:
    """Every breach, in the order of the invariants. Not `settled`: what has not come yet may be under way."""
    checks = [check for check in CHECKS if settled or check is not kept]
    found = [violation for check in checks for violation in check(history)]
    return sorted(found, key=lambda violation: violation.number)


def strays(history: History) -> Violations:
    """1 and 2: whose the messages are that came on a socket."""
    for attach, message in messages(history):
        attempt = asked_for(history, message)
        if attempt is None:
            continue
        theirs, ours = attempt.context, attach.context
        if (theirs.tenant, theirs.user) != (ours.tenant, ours.user):
            yield Violation(1, f"{attach} was sent {attempt} to {theirs}")
        elif theirs is not ours:
            yield Violation(2, f"{attach} was sent {attempt} to {theirs}")


def counts(history: History) -> Violations:
    """3: a context took what was sent to it, and nothing else."""
    for context, took in history.counts:
        own = [attempt for attempt in history.attempts.values() if attempt.context is context]
        sure = sum(bool(attempt.receipts) for attempt in own)
        most = sure + sum(attempt.open for attempt in own)
        if not sure <= took <= most:
            yield Violation(
                3, f"{context} took {took} messages; it was sent {sure}, and {most - sure} without an answer"
            )


def order(history: History) -> Violations:
    """4 and 5: on each socket."""
    for attach in history.attaches:
        at = attach.position
        for frame in attach.frames:
            first, last = (frame.first, frame.last) if isinstance(frame, Gap) else (frame.sequence, frame.sequence)
            if first != at + 1 or last < first:
                yield Violation(4, f"{attach} was sent {shown(frame)} after {at}")
            at = last
        missed = sum(gap.last - gap.first + 1 for gap in attach.gaps)
        if at - attach.position - len(attach.messages) != missed:
            yield Violation(
                5,
                f"{attach} was sent {len(attach.messages)} messages from {attach.position} to {at}, "
                f"and told that {missed} are missing",
            )


def dropped(history: History) -> Violations:
    """5: what a service was told to be dropped did not come.

    Unless the process ended in between: a drop is stored some 200 ms after it is told, and the next process does not
    know what was written without being acknowledged. It may deliver after all, or hold for dropped what had come.
    """
    came = {
        (attach.context.connection_id, message.sequence): (attach, message)
        for attach, message in messages(history)
        if not attach.mirror
    }
    for told, context, first, last in history.dropped:
        for sequence in range(first, last + 1):
            if (context.connection_id, sequence) in came:
                attach, message = came[context.connection_id, sequence]
                if any(min(told, message.seen) < died < max(told, message.seen) for died in history.deaths):
                    continue
                seen = f"{shown(message)} at {message.seen}"
                yield Violation(5, f"{attach} was sent {seen}; a service was told at {told} that it is dropped")


def repeats(history: History) -> Violations:
    """10: what was accepted is known to be, whoever asks again."""
    for attempt in history.attempts.values():
        first = min((one.ended for one in attempt.tries if one.receipt is not None), default=NEVER)
        for one in attempt.tries:
            if one.began > first and one.receipt is not None and not one.receipt.duplicate:
                yield Violation(10, f"{attempt} was accepted by {attempt.context}, and then as new")


def identities(history: History) -> Violations:
    """6 and 10: of what has a sequence."""
    payloads: defaultdict[tuple[str, int], set[str]] = defaultdict(set)
    sequences: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    for attach, message in messages(history):
        attempt = asked_for(history, message)
        uuid = str(message.document) if attempt is None else attempt.uuid
        if attempt is not None and message.document != attempt.document:
            yield Violation(6, f"{attach} was sent {shown(message)} for {attempt}")
        context = attach.context.connection_id
        payloads[context, message.sequence].add(uuid)
        sequences[context, uuid].add(message.sequence)
        if attempt is not None and attempt.message_id not in {"", message.message_id}:
            yield Violation(10, f"{attach} was sent {attempt} as {message.message_id}")
    for attempt, _, receipt in history.accepted():
        context = attempt.context.connection_id
        payloads[context, receipt.sequence].add(attempt.uuid)
        sequences[context, attempt.uuid].add(receipt.sequence)
    for (context, sequence), uuids in payloads.items():
        if len(uuids) > 1:
            yield Violation(6, f"{context} has several messages at {sequence}: {sorted(uuids)}")
    for (context, uuid), found in sequences.items():
        if len(found) > 1:
            yield Violation(10, f"{context} has {uuid} at {sorted(found)}")


def head(history: History) -> Violations:
    """7: what was asked for later has a higher sequence than whatever was seen before."""
    seen = [(attempt.context, one.ended, receipt.sequence) for attempt, one, receipt in history.accepted()]
    for attach in history.attaches:
        seen += [(attach.context, frame.seen, last_of(frame)) for frame in attach.frames]
    heads = Heads(seen)
    for attempt, _, receipt in history.accepted():
        # A retry has the sequence of the call that it repeats.
        highest = heads.before(attempt.context, attempt.tries[0].began)
        if receipt.sequence <= highest:
            where = f"{attempt.context} gave {attempt} {receipt.sequence}"
            yield Violation(7, f"{where}, after {highest} had been seen")


def kept(history: History) -> Violations:
    """8: what became of every OK."""
    delivered = {
        (attach.context.connection_id, message.sequence, attempt.uuid)
        for attach, message in messages(history)
        if not attach.mirror and (attempt := asked_for(history, message)) is not None
    }
    announced: defaultdict[str, dict[int, Gap]] = defaultdict(dict)
    for attach in history.attaches:
        for gap in attach.gaps:
            announced[attach.context.connection_id].update(dict.fromkeys(range(gap.first, gap.last + 1), gap))
    for attempt, one, receipt in history.accepted():
        context = attempt.context
        what = f"{attempt}, accepted at {receipt.sequence} ({receipt.durability}, seen at {one.ended}) by {context},"
        if receipt.durability != context.durability:
            yield Violation(8, f"{what} was to be at {context.durability}")
        if (context.connection_id, receipt.sequence, attempt.uuid) in delivered:
            continue
        missed = announced[context.connection_id].get(receipt.sequence)
        if missed is not None:
            yield from dishonest(missed, attempt, what)
        elif not context.ended:
            yield Violation(8, f"{what} was neither delivered nor announced, and the context has not ended")


def dishonest(gap: Gap, attempt: Attempt, what: str) -> Violations:
    """A gap over what must have been kept."""
    if gap.reason == "lost" and attempt.context.durability == DISK:
        yield Violation(8, f"{what} was announced as lost")
    elif gap.reason != "acknowledged" and attempt.critical:
        yield Violation(8, f"{what} is critical and was announced as {gap.reason}")


def asked(history: History) -> Violations:
    """9: nothing comes of itself."""
    for attach, message in messages(history):
        attempt = asked_for(history, message)
        if attempt is None:
            yield Violation(9, f"{attach} was sent {shown(message)}, which nobody asked for")
        elif attempt.refused:
            yield Violation(9, f"{attach} was sent {attempt}, which was refused {attempt.tries[0].refused}")


def recoveries(history: History) -> Violations:
    """11: what a welcome says of a resume."""
    heads = Heads((attempt.context, one.ended, receipt.sequence) for attempt, one, receipt in history.accepted())
    for attach in history.attaches:
        if attach.recovery not in RESUMED:
            continue
        if attach.position != attach.claimed:
            yield Violation(11, f"{attach} was welcomed at {attach.position} and had said {attach.claimed}")
        known = heads.before(attach.context, attach.asked)
        early = [gap for gap in attach.gaps if gap.first <= known]
        reached = any(message.sequence >= known for message in attach.messages)
        if attach.recovery == "full" and early:
            yield Violation(11, f"{attach} was promised all up to {known}, and sent {shown(early[0])}")
        if attach.recovery == "gap" and reached and not attach.gaps:
            yield Violation(11, f"{attach} was told of a gap, and sent none")
    for denial in history.denials:
        if not denial.context.ended:
            yield Violation(11, f"{denial.context} was denied to its own client, and has not ended")


class Heads:
    """The highest sequence of each context that had been seen, at any time; of (context, number, sequence)."""

    def __init__(self, seen: Iterable[tuple[Context, int, int]]) -> None:
        told: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        for context, number, sequence in seen:
            told[context.connection_id].append((number, sequence))
        self._times: dict[str, list[int]] = {}
        self._highest: dict[str, list[int]] = {}
        for connection_id, pairs in told.items():
            pairs.sort()
            self._times[connection_id] = [number for number, _ in pairs]
            self._highest[connection_id] = list(accumulate((sequence for _, sequence in pairs), max))

    def before(self, context: Context, number: int) -> int:
        """What had been seen before that observation; 0: nothing."""
        place = bisect_left(self._times.get(context.connection_id, []), number)
        return self._highest[context.connection_id][place - 1] if place else 0


def acknowledgements(history: History) -> Violations:
    """12: what the sidecar knows to be acknowledged does not come again; and it knows of none that nobody gave."""
    read = Heads((one.context, one.seen, one.sequence) for one in history.acknowledged)
    for attach in history.attaches:
        done = max(attach.claimed, read.before(attach.context, attach.asked))
        for message in attach.messages:
            if message.sequence <= done and not attach.mirror:
                yield Violation(12, f"{attach} was sent {shown(message)}, and {done} was acknowledged before")
    given = Heads((one.context, one.seen, one.sequence) for one in history.given)
    for one in history.acknowledged:
        if one.sequence > given.before(one.context, one.seen):
            yield Violation(12, f"{one.context} is said to have acknowledged {one.sequence}, and did not")
    for attempt, call, receipt in history.accepted():
        if receipt.state == "ACKNOWLEDGED" and receipt.sequence > given.before(attempt.context, call.ended):
            yield Violation(12, f"{attempt} at {receipt.sequence} is said to be acknowledged by {attempt.context}")


def fences(history: History) -> Violations:
    """13: what was asked for after the next socket's welcome is not for the one before."""
    for context in history.contexts.values():
        primaries = history.primaries(context)
        for fenced, following in pairwise(primaries):
            for message in fenced.messages:
                attempt = asked_for(history, message)
                if attempt is not None and attempt.tries[0].began > following.opened:
                    yield Violation(13, f"{fenced} was sent {attempt} after {following} had taken its place")


def leftovers(history: History) -> Violations:
    """16: everything returns to where it was."""
    for what, before, after in history.leftovers:
        if after != before:
            yield Violation(16, f"{what}: {before} before, {after} after")


def closes(history: History) -> Violations:
    """30: the codes of the catalogue, a service's own, or none."""
    for who, code in history.close_codes:
        if code not in {*CloseCode, *OWN_CODES, LOST}:
            yield Violation(30, f"{who} was closed with {code}")


def messages(history: History) -> Iterator[tuple[Attach, Message]]:
    for attach in history.attaches:
        for message in attach.messages:
            yield attach, message


def asked_for(history: History, message: Message) -> Attempt | None:
    """Whose payload that is."""
    document = message.document
    return history.attempts.get(document.get("uuid", "")) if isinstance(document, dict) else None


def last_of(frame: Message | Gap) -> int:
    return frame.last if isinstance(frame, Gap) else frame.sequence


def shown(frame: Message | Gap) -> str:
    """A frame in a line."""
    if isinstance(frame, Gap):
        return f"a gap from {frame.first} to {frame.last} ({frame.reason})"
    return f"message {frame.sequence} ({frame.message_id}) {str(frame.document)[:MAX_SHOWN]}"


CHECKS: tuple[Callable[[History], Violations], ...] = (
    strays,
    counts,
    order,
    dropped,
    identities,
    repeats,
    head,
    kept,
    asked,
    recoveries,
    acknowledgements,
    fences,
    leftovers,
    closes,
)
