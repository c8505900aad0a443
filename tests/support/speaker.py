"""A service that answers one context in streams, chunk by chunk, on the core alone."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.core.errors import ErrorReason, SidecarError
from sidecar.core.limits import Limits
from sidecar.core.manager import IsolatedWebSocketManager
from sidecar.core.message import PendingReceipt, Receipt, StreamPlace, StreamState
from tests.support.core import Core
from tests.support.doubles import LaterStore

OPEN, END, ERROR = StreamState.OPEN, StreamState.END, StreamState.ERROR
Told = list[tuple[str, str]]


class Speaker:
    """A service that sends chunks to one context, and is told of what its client cancels."""

    def __init__(
        self, limits: Limits | None = None, store: LaterStore | None = None, *, core: Core | None = None
    ) -> None:
        self.core = core or Core(limits, store)
        self.manager: IsolatedWebSocketManager
        self.manager, self.socket = self.core.connect()
        self.cancelled: Told = []
        self.manager.conversation.watch_cancels(lambda *told: self.cancelled.append(told))

    def offer(
        self, index: int, state: StreamState = OPEN, stream_id: str = "s", payload: bytes = b"{}", **members: Any
    ) -> Receipt | PendingReceipt:
        place = StreamPlace(stream_id, index, state)
        return self.core.offer(self.manager, payload, stream=place, **members)

    def send(self, index: int, state: StreamState = OPEN, stream_id: str = "s", **members: Any) -> Receipt:
        receipt = self.offer(index, state, stream_id, **members)
        assert isinstance(receipt, Receipt)
        return receipt

    def later(self, index: int, state: StreamState = OPEN, stream_id: str = "s") -> PendingReceipt:
        receipt = self.offer(index, state, stream_id)
        assert isinstance(receipt, PendingReceipt)
        return receipt

    def refusal(self, index: int, state: StreamState = OPEN, stream_id: str = "s", **members: Any) -> ErrorReason:
        with pytest.raises(SidecarError) as caught:
            self.offer(index, state, stream_id, **members)
        return caught.value.reason

    def cancel(self, stream_id: str | None = None, message_id: str | None = None) -> Told:
        """The client's; what is told of it."""
        self.manager.cancel(stream_id, message_id, self.core.clock.now())
        told, self.cancelled = self.cancelled, []
        return told
