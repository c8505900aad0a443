"""What one commit writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from sidecar.core.message import StreamPlace
    from sidecar.core.stored import MessageIdentity, StoredContext, StoredState
    from sidecar.storage.sqlite.sealing import Seal


class NewContext(NamedTuple):
    """A context to be kept; `key` is its seal's."""

    id: int
    key: bytes
    seal: Seal
    context: StoredContext


class NewMessage(NamedTuple):
    """A message to be kept, in row `id`; times are Unix seconds. A client's own has a negative `sequence`."""

    id: int
    context: int
    seal: Seal
    sequence: int
    frame: bytes
    size: int
    expires_at: float
    critical: bool
    accepted_at: float
    identity: MessageIdentity | None
    stream: StreamPlace | None


class NewState(NamedTuple):
    """Where a context stands now."""

    context: int
    seal: Seal
    state: StoredState


@dataclass(slots=True)
class Batch:
    """See the module. `cleared` are rows whose message goes and whose identity stays; `truncate`: empty the log too.

    `watchers` are called when it was answered, one way or the other.
    """

    contexts: list[NewContext] = field(default_factory=list)
    messages: list[NewMessage] = field(default_factory=list)
    states: list[NewState] = field(default_factory=list)
    cleared: list[int] = field(default_factory=list)
    deleted: list[int] = field(default_factory=list)
    disposed: list[int] = field(default_factory=list)
    watchers: list[Callable[[], None]] = field(default_factory=list)
    truncate: bool = False

    @property
    def asks(self) -> bool:
        """True when the writer is to do or to say anything."""
        return self.writes or self.truncate or bool(self.watchers)

    @property
    def writes(self) -> bool:
        """True when there is anything to commit."""
        return bool(self.contexts or self.messages or self.states or self.cleared or self.deleted or self.disposed)
