"""What users said to their agents and what came back, as all of them saw it, and what must hold of it.

Of each context that lives: what was accepted is handled at least once, first handled in the order in which it was
accepted, and not marked at most once; an answer's chunks come in order, each once, and it ends or fails visibly unless
its user cancelled it. Nothing of anybody's reaches another, in neither direction.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

OVER = ("end", "error")
ANSWER_TO = "to-"
"""Before a message's id, the stream_id of its answer."""
FINE = {"whole", "STREAM_CANCELLED", "STREAM_ENDED", "MANAGER_GONE"}
"""How a worker's answer may end: all of it was taken, or a chunk was refused for that."""


class Handling(NamedTuple):
    """A worker was handed a message: whose the sidecar says that it is, and what the message says."""

    at: float
    worker: str
    person: tuple[str, str]
    context: str
    id: str
    said: dict[str, Any]
    redelivered: bool
    life: int
    """Of that worker, of which each attaches anew."""


class Chunk(NamedTuple):
    """A part of an answer as it came on a user's socket. `document` None: the sidecar ended a silent one."""

    place: int
    state: str
    document: dict[str, Any] | None


@dataclass
class Said:
    """A user's message. `mine`: its worker acknowledges it before it answers, and answers it at most once."""

    id: str
    document: dict[str, Any]
    accepted: bool = False
    cancelled: bool = False
    chunks: list[Chunk] = field(default_factory=list)

    def __str__(self) -> str:
        when = "before" if self.document["mine"] else "after"
        return f"{self.id}, acknowledged {when} it is answered, {len(self.chunks)} of {self.document['chunks']} chunks"

    @property
    def over(self) -> bool:
        return bool(self.chunks) and self.chunks[-1].state in OVER


@dataclass
class Talk:
    """One context's: what was `said`, each after the one before was accepted. `missed`: how much gaps announced."""

    person: tuple[str, str]
    connection_id: str
    said: dict[str, Said] = field(default_factory=dict)
    strays: list[str] = field(default_factory=list)
    missed: int = 0
    ended: bool = False

    @property
    def accepted(self) -> list[Said]:
        return [one for one in self.said.values() if one.accepted]

    def unfinished(self) -> list[Said]:
        """Whose answer must still come, or go on."""
        return [
            one for one in self.accepted if not (one.over or one.cancelled or (self.is_free(one) and not one.chunks))
        ]

    def is_free(self, one: Said) -> bool:
        """Its worker may have been killed before its first chunk, and nobody answers it."""
        return bool(one.document["mine"])

    def came(self, frame: dict[str, Any]) -> None:
        """A message came on this context's socket."""
        place, document = frame.get("stream", {}), frame["data"]
        one = self.said.get(place.get("id", "").removeprefix(ANSWER_TO))
        # The sidecar ends a silent stream, and may not know any more what it answered: it was killed as that began.
        answered = frame.get("reply_to", one and document is None and one.id)
        if one is None or answered != one.id:
            self.strays.append(f"{self} was sent {frame}")
        else:
            one.chunks.append(Chunk(place["index"], place["state"], document))

    def __str__(self) -> str:
        return f"{self.connection_id} of {'/'.join(self.person)}"


def breaches(
    talks: Sequence[Talk],
    handlings: Iterable[Handling],
    answers: Iterable[tuple[str, str, str]],
) -> list[str]:
    """Every one, in a line, but for what is owed: that may be under way."""
    by_context: defaultdict[str, list[Handling]] = defaultdict(list)
    for handling in handlings:
        by_context[handling.context].append(handling)
    found = [f"{context}: the answer to {name} was refused {how}" for context, name, how in answers if how not in FINE]
    known = {talk.connection_id for talk in talks}
    found += [
        f"a message of {context} was handed over, and nobody talks there" for context in by_context.keys() - known
    ]
    for talk in talks:
        handed = by_context[talk.connection_id]
        found += [*handed_over(talk, handed), *talk.strays, *answered(talk)]
    return found


def lost(talks: Sequence[Talk], handlings: Iterable[Handling]) -> list[str]:
    """What was accepted in a context that lives, and has not been handled, in a line each."""
    handled = {(one.context, one.id) for one in handlings}
    return [
        f"{talk}: accepted and never handled: {one.id}"
        for talk in talks
        for one in talk.accepted
        if not talk.ended and (talk.connection_id, one.id) not in handled
    ]


def unanswered(talk: Talk) -> list[str]:
    """Whose answer has not ended, nor failed, in a context that lives, in a line each."""
    alive = not (talk.ended or talk.missed)
    return [f"{talk}: the answer to {one} neither ended nor failed" for one in talk.unfinished() if alive]


def handed_over(talk: Talk, handlings: list[Handling]) -> Iterator[str]:
    """In order, marked when again, and whose it is."""
    unmarked: defaultdict[str, int] = defaultdict(int)
    first: dict[str, float] = {}
    for one in handlings:
        said = talk.said.get(one.id)
        if said is None or said.document != one.said or one.person != talk.person:
            yield f"{one.worker} was handed {one.said} as {one.id} of {one.person}, in {talk}"
            continue
        first.setdefault(one.id, one.at)
        unmarked[one.id] += not one.redelivered
    yield from (
        f"{talk}: {name} was handed over {times} times without a mark" for name, times in unmarked.items() if times > 1
    )
    yield from begun_anew(talk, handlings)
    order = [one.id for one in talk.accepted if one.id in first]
    if order != sorted(order, key=first.__getitem__):
        yield f"{talk}: accepted in the order {order}, handled in {sorted(order, key=first.__getitem__)}"


def begun_anew(talk: Talk, handlings: list[Handling]) -> Iterator[str]:
    """What is sent again begins with the oldest that nobody acknowledged, and goes on in order: never further back."""
    place = {name: number for number, name in enumerate(talk.said)}
    runs: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
    for one in handlings:
        if one.id in place:
            runs[one.worker, one.life].append(place[one.id])
    for (worker, _), run in runs.items():
        beginnings = [run[0], *(after for before, after in pairwise(run) if after <= before)]
        if beginnings != sorted(beginnings):
            yield f"{talk}: {worker} was handed over {run}, out of order"


def is_its(chunk: Chunk, one: Said) -> bool:
    """What a worker answers that message with there, or the end of an answer that fell silent."""
    if chunk.document is None:
        return chunk.state == "error"
    own = {name: one.document[name] for name in ("tenant", "user", "context", "uuid")}
    return chunk.document == own | {"index": chunk.place}


def answered(talk: Talk) -> Iterator[str]:
    """Each answer's chunks."""
    missing = 0
    for one in talk.said.values():
        indices = [chunk.place for chunk in one.chunks]
        if indices != sorted(set(indices)):
            yield f"{talk}: the chunks of the answer to {one.id} came as {indices}"
        missing += (max(indices) + 1 - len(indices)) if indices else 0
        for place, chunk in enumerate(one.chunks):
            if chunk.state in OVER and place + 1 < len(one.chunks):
                yield f"{talk}: the answer to {one.id} went on after its {chunk.state}"
            if not is_its(chunk, one):
                yield f"{talk}: the answer to {one.id} has {chunk}"
    if missing > talk.missed:
        yield f"{talk}: {missing} chunks are missing, and {talk.missed} were announced as a gap"
