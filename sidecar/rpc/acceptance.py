"""The one way in for every message of a verified token: translated, allowed, handed to its manager."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from sidecar.core.errors import ErrorReason, PermissionDenied, Unavailable
from sidecar.core.identity import Scope
from sidecar.rpc.translate import message_from

if TYPE_CHECKING:
    from sidecar.api.v1 import types_pb2
    from sidecar.core.factory import WebSocketManagerFactory
    from sidecar.core.manager import IsolatedWebSocketManager
    from sidecar.core.message import Instant, Message, PendingReceipt, Receipt

DRAINING_RETRY_S: Final = 5.0
MAX_DISPOSAL_S: Final = 2.0


class Acceptance:
    """Accepts messages for managers, as long as the sidecar may promise anything about them."""

    def __init__(self, factory: WebSocketManagerFactory) -> None:
        self._factory = factory

    def accept(
        self, manager: IsolatedWebSocketManager, scopes: frozenset[Scope], proto: types_pb2.Message, at: Instant
    ) -> Receipt | PendingReceipt:
        """Take one message as SendToUser, a batch's item or a lane carries it. Raises a SidecarError when refused.

        Who has the manager from `Callers.open` was asked for the scope `send` there.
        """
        message = message_from(proto)
        if proto.critical:
            require_emit(message, scopes)
        if self._factory.draining:
            self._require_survival(manager)
        return manager.send_to_user(manager.context, message, at)

    def send(self, manager: IsolatedWebSocketManager, message: Message, at: Instant) -> Receipt | PendingReceipt:
        """Hand a message to its manager. Raises DRAINING where its client could get it from no one any more."""
        if self._factory.draining:
            self._require_survival(manager)
        return manager.send_to_user(manager.context, message, at)

    def _require_survival(self, manager: IsolatedWebSocketManager) -> None:
        if manager.primary is None and not self._factory.survives:
            raise Unavailable(ErrorReason.DRAINING, retry_after_s=DRAINING_RETRY_S)


async def ended_for_good(factory: WebSocketManagerFactory) -> None:
    """Return once what was ended is gone from the store too: a crash would bring it back for its window till then.

    Or once the store has failed, or after a while: taking away waits for nobody longer than that.
    """
    done = asyncio.Event()
    if not factory.when_written(done.set):
        with suppress(TimeoutError):
            async with asyncio.timeout(MAX_DISPOSAL_S):
                await done.wait()


def require_emit(message: Message, scopes: frozenset[Scope]) -> None:
    """A critical message needs the emit scope, whichever way it comes."""
    if message.critical and Scope.EMIT not in scopes:
        raise PermissionDenied(ErrorReason.SCOPE_MISSING)
