"""What the store was asked for, in the order in which it answers, and what it knows of the context asked about."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from sidecar.core.message import Instant
    from sidecar.core.outbox import OutboxEntry
    from sidecar.core.ports import Confirmed
    from sidecar.core.stored import MessageIdentity, RestoredContext, StoredContext, StoredState
    from sidecar.storage.sqlite.batch import Batch
    from sidecar.storage.sqlite.sealing import Seal

NOTHING: Final = 0
"""Expected of a context that is not kept: no append has that sequence."""


class Context:
    """What the store knows of one context: its row, its seal, the rows of its messages by sequence.

    `kept`: its creation was committed. `expected`: the sequence that its next append must have.
    """

    __slots__ = ("disposed", "epoch", "expected", "frames", "id", "identities", "kept", "released", "seal", "state")

    def __init__(self, row: int, seal: Seal, epoch: int, state: Callable[[], StoredState] | None) -> None:
        self.id = row
        self.seal = seal
        self.epoch = epoch
        self.state = state
        self.expected = 1
        self.released = 0
        self.frames: dict[int, int] = {}
        self.identities: dict[int, int] = {}
        self.disposed = False
        self.kept = False

    def release(self, sequences: Iterable[int], upkeep: Batch) -> None:
        """The rows of these messages go with that batch, or what is in them does where a repeat is still recognised."""
        frames, identities = self.frames, self.identities
        for sequence in sequences:
            row = frames.pop(sequence, None)
            if row is not None:
                (upkeep.cleared if sequence in identities else upkeep.deleted).append(row)


class Creation(NamedTuple):
    """A context to be kept; `key` is its seal's."""

    context: Context
    key: bytes
    stored: StoredContext
    confirmed: Confirmed


class Append(NamedTuple):
    """A message to be kept: an outbox's entry, accepted `at`, which stays as it is until its append was answered.

    A client's own has a negative sequence: its number in its context, by which nothing is expected.
    """

    context: Context
    epoch: int
    entry: OutboxEntry
    identity: MessageIdentity | None
    at: Instant
    confirmed: Confirmed

    @property
    def is_inbound(self) -> bool:
        """It is a client's own."""
        return self.entry.sequence < 0


make_append: Final[Callable[[tuple[Context, int, OutboxEntry, MessageIdentity | None, Instant, Confirmed]], Append]] = (
    partial(tuple.__new__, Append)
)
"""An Append of all its members: calling the type costs twice as much."""

Request = Creation | Append
Adopt = Callable[["RestoredContext"], "tuple[int, Callable[[], StoredState]] | None"]
"""Takes over a context that was kept: its owner epoch from now on, and what reads where it stands. None: it is over."""


def is_expected(context: Context, epoch: int, sequence: int) -> bool:
    """An append is conditional on the owner's epoch and on the sequence that comes next; a client's own on neither."""
    if context.disposed or sequence < 0:
        return not context.disposed and context.expected != NOTHING
    return sequence == context.expected and epoch == context.epoch
