"""What one commit writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from sidecar.core.stored import StoredState
    from sidecar.storage.sqlite.requests import Append, Creation
    from sidecar.storage.sqlite.sealing import Seal


class NewState(NamedTuple):
    """Where a context stands now."""

    context: int
    seal: Seal
    state: StoredState


@dataclass(slots=True)
class Batch:
    """See the module. `cleared` are rows whose message goes and whose identity stays; `truncate`: empty the log too.

    `messages` go in the rows from `first_row` on. `watchers` are called when it was answered, one way or the other.
    """

    contexts: list[Creation] = field(default_factory=list)
    first_row: int = 0
    messages: list[Append] = field(default_factory=list)
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
