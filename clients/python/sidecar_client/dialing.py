"""One WebSocket to a sidecar, and what its refusals and ends mean: connect again, or never."""

from __future__ import annotations

import logging
from typing import Any, Final, NamedTuple

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from sidecar_client.errors import ConnectionEnded

SUBPROTOCOL: Final = "sidecar.v1.json"
NORMAL: Final = 1000
GOING_AWAY: Final = 1001
OVERLOADED: Final = 1013
MAX_FRAME_BYTES: Final = 8 * 1_048_576
MAX_RETRY_AFTER_S: Final = 300.0
CLOSE_TIMEOUT_S: Final = 5.0
_TOO_BIG: Final = 1009
_FINAL: Final = {1000, 1002, 1003, 1007, 1009}
_PASSING_STATUSES: Final = {408, 425, 429, 500, 502, 503, 504}
"""Refused handshakes after which a further one may go better: the sidecar's 429, 500 and 503, and a proxy's."""


# At DEBUG the library writes every frame down, tokens and payloads: it is kept from that whatever else is turned on.
_LOGGER: Final = logging.getLogger("sidecar_client.websocket")
_LOGGER.setLevel(logging.INFO)


class Again(NamedTuple):
    """Connect again, after at least that long, or exactly."""

    after_s: float = 0.0
    exactly: bool = False


class _NoRedirects(connect):
    """A redirect is a refusal: the hello of a user goes to the host that was named, and no other."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


async def dial(url: str, open_timeout_s: float, options: dict[str, Any]) -> ClientConnection:
    """Connect and negotiate the subprotocol. Raises as `websockets` does, ConnectionEnded where it is no sidecar."""
    socket = await _NoRedirects(
        url,
        subprotocols=[Subprotocol(SUBPROTOCOL)],
        compression=None,  # the sidecar does not
        open_timeout=open_timeout_s,
        close_timeout=CLOSE_TIMEOUT_S,
        max_size=MAX_FRAME_BYTES,
        logger=_LOGGER,
        **options,
    )
    if socket.subprotocol != SUBPROTOCOL:
        socket.transport.abort()
        raise ConnectionEnded(1002, f"no {SUBPROTOCOL} there")
    return socket


def after_refusal(refused: InvalidStatus) -> Again:
    """What a refused handshake means. Raises ConnectionEnded where connecting again would be no use."""
    status = refused.response.status_code
    if status not in _PASSING_STATUSES:
        raise ConnectionEnded(status, refused.response.reason_phrase)
    wanted = refused.response.headers.get("Retry-After", "")
    return Again(min(float(wanted), MAX_RETRY_AFTER_S) if wanted.isdecimal() and wanted.isascii() else 0.0)


def after_close(closed: ConnectionClosed) -> Again:
    """What the end of a socket means. Raises ConnectionEnded where connecting again would be no use."""
    by_sidecar = closed.rcvd is not None and closed.rcvd_then_sent is not False
    if not by_sidecar or closed.rcvd is None:
        # Lost without a close, or closed from here for what the other side sent. A frame over this side's own limit
        # would come again and again.
        if closed.sent is not None and closed.sent.code == _TOO_BIG:
            raise ConnectionEnded(_TOO_BIG, f"a frame of more than {MAX_FRAME_BYTES} bytes")
        return Again()
    code, reason = closed.rcvd.code, closed.rcvd.reason
    if code >= 4500 or code in _FINAL:
        raise ConnectionEnded(code, reason)
    return Again(1.0 if code == OVERLOADED else 0.0)
