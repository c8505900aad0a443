"""The catalogue of WebSocket close codes (RFC 6455 §7.4); the close text is always the catalogue's name."""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple


class CloseCode(IntEnum):
    """Every code the sidecar closes a socket with. Below 4500 a client reconnects; from 4500 on it does not.

    1000, 1002, 1003, 1007 and 1009 (RFC 6455 §7.4.1) also mean: do not reconnect. 1011 is never sent.
    """

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    INVALID_DATA = 1007
    MESSAGE_TOO_BIG = 1009
    RESTART = 1012
    OVERLOADED = 1013
    TOKEN_EXPIRED = 4000
    HELLO_TIMEOUT = 4001
    PONG_TIMEOUT = 4002
    SLOW_CONSUMER = 4003
    RATE_LIMITED = 4005
    BAD_FRAME = 4500
    TOKEN_INVALID = 4501
    FORBIDDEN = 4502
    TAKEN_OVER = 4503
    LIMIT_REACHED = 4504
    CLOSED_BY_SERVICE = 4505
    REVOKED = 4506
    IDLE = 4507
    REPLACED = 4508


SERVICE_CODES: Final = range(4900, 5000)
"""Codes a service may choose for CloseManager, beside CLOSED_BY_SERVICE."""


class Close(NamedTuple):
    """A close as it goes on the wire: `code` and a `text` of at most 123 bytes (RFC 6455 §5.5)."""

    code: int
    text: str


def catalogued(code: CloseCode) -> Close:
    """The close of the catalogue for this code."""
    return Close(int(code), code.name.lower())


def service_close(code: int, reason: str) -> Close:
    """A close that a service asked for. Its own text is kept for its own codes, cut to 123 bytes on a character."""
    if code in SERVICE_CODES:
        return Close(code, reason.encode()[:123].decode(errors="ignore") or "closed_by_service")
    return catalogued(CloseCode.CLOSED_BY_SERVICE)
