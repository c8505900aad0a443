"""What is decided before the upgrade (RFC 6455 §4.2): the request's own checks, and the fixed answers of a refusal.

Pure: reads a request, gives an `Offer` or raises a `Refused`. Nothing that the client sent is ever in an answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import unquote_plus

from websockets.exceptions import InvalidHeader
from websockets.headers import parse_subprotocol

from sidecar.core.identity import IDENTIFIER

if TYPE_CHECKING:
    from websockets.datastructures import Headers
    from websockets.http11 import Request

PATH: Final = "/v1/connect"
JSON_PROTOCOL: Final = "sidecar.v1.json"
RAW_PROTOCOL: Final = "sidecar.v1.raw"
_BEARER_OFFER: Final = "bearer."
_TOKEN_NAMES: Final = frozenset(
    {"token", "access_token", "user_token", "id_token", "jwt", "bearer", "authorization", "auth"}
)
# Possessive, from the start of a run: linear in what a stranger sends.
_TOKEN_SHAPE: Final = re.compile(r"(?<![A-Za-z0-9_-])[A-Za-z0-9_-]{8,}+\.[A-Za-z0-9_-]{8,}+\.")
_UNPRINTABLE: Final = re.compile(r"[^ -~]+")
_MAX_METADATA_CHARACTERS: Final = 256


class Refusal(Enum):
    """Every answer but 101: its status and its fixed body. The name in lower case is the audit trail's reason.

    HANDSHAKE_TIMEOUT is only recorded: a connection that has not made its request gets no answer.
    """

    MALFORMED = 400, "malformed request\n"
    NO_HOST = 400, "exactly one Host is required\n"
    TWO_TOKENS = 400, "more than one user token\n"
    TOKEN_IN_URL = 400, "a user token must not stand in the URL\n"
    SUBPROTOCOL = 400, "offer the subprotocol sidecar.v1.json or sidecar.v1.raw\n"
    TOKEN_REFUSED = 401, "a valid user token is required\n"
    ORIGIN = 403, "origin not allowed\n"
    NOT_FOUND = 404, "not found\n"
    METHOD = 405, "method not allowed\n"
    HANDSHAKE_TIMEOUT = 408, ""
    URL_TOO_LONG = 414, "request line too long\n"
    UPGRADE_REQUIRED = 426, "a WebSocket upgrade is required\n"
    USER_LIMIT = 429, "a limit of this user is reached\n"
    ADDRESS_LIMIT = 429, "too many attempts\n"
    HEADERS_TOO_LARGE = 431, "request headers too large\n"
    INTERNAL = 500, "internal error\n"
    DRAINING = 503, "draining\n"
    FULL = 503, "too many connections\n"
    AUDIT_UNAVAILABLE = 503, "unavailable\n"
    STORAGE_UNAVAILABLE = 503, "storage unavailable\n"
    CONTEXT_ENDED = 503, "the context has ended\n"
    HTTP_VERSION = 505, "HTTP/1.1 is required\n"

    @property
    def status(self) -> int:
        return self.value[0]

    @property
    def body(self) -> str:
        return self.value[1]

    @property
    def reason(self) -> str:
        """What the audit trail calls it."""
        return self.name.lower()

    @property
    def headers(self) -> Sequence[tuple[str, str]]:
        """The headers that this status asks for (RFC 9110 §10.2.3, §11.6.1, §15.5.6, §15.5.22)."""
        return _HEADERS.get(self.status, ())


_HEADERS: Final = {
    401: (("WWW-Authenticate", "Bearer"),),
    405: (("Allow", "GET"),),
    426: (("Upgrade", "websocket"),),
    429: (("Retry-After", "1"),),
    503: (("Retry-After", "1"),),
}

BY_STATUS: Final = {
    400: Refusal.MALFORMED,
    403: Refusal.ORIGIN,
    405: Refusal.METHOD,
    414: Refusal.URL_TOO_LONG,
    426: Refusal.UPGRADE_REQUIRED,
    431: Refusal.HEADERS_TOO_LARGE,
    503: Refusal.DRAINING,
    505: Refusal.HTTP_VERSION,
}
"""What the library's own rejections mean; any other is INTERNAL."""


class Refused(Exception):
    """The handshake ends with this answer. `fault` says more, to the audit trail only."""

    def __init__(self, refusal: Refusal, fault: str | None = None) -> None:
        self.refusal = refusal
        self.fault = fault
        super().__init__(refusal.reason)


class Offer(NamedTuple):
    """A request that keeps every rule. `answer` is the subprotocol to name in the 101, None where none was offered.

    `token` is not verified yet; `request_id` is one that may be used, or None.
    """

    raw: bool
    answer: str | None
    token: str | None
    request_id: str | None
    origin: str | None
    user_agent: str | None

    def metadata(self, address: str) -> dict[str, str]:
        """What a context remembers of its handshake."""
        known = {
            "address": address,
            "protocol": RAW_PROTOCOL if self.raw else JSON_PROTOCOL,
            "origin": self.origin,
            "user_agent": self.user_agent,
        }
        return {name: value for name, value in known.items() if value}


def check_path(request: Request) -> None:
    """Raise Refused (404) unless the request is for the one path there is."""
    if request.path.partition("?")[0] != PATH:
        raise Refused(Refusal.NOT_FOUND)


def read_offer(request: Request, allowed_origins: Sequence[str]) -> Offer:
    """What the request asks for. Raises Refused: 400 for its form, then 403 for its origin."""
    headers = request.headers
    if len(headers.get_all("Host")) != 1 or not headers["Host"].strip():
        raise Refused(Refusal.NO_HOST)
    if _has_token(request.path.partition("?")[2]):
        raise Refused(Refusal.TOKEN_IN_URL)
    raw, answer, offered = _read_subprotocols(headers)
    token = _one_token(headers, offered)
    origin = _single(headers, "Origin")
    if origin is not None and "*" not in allowed_origins and origin not in allowed_origins:
        raise Refused(Refusal.ORIGIN)
    request_id = _single(headers, "X-Request-Id")
    usable = request_id is not None and IDENTIFIER.fullmatch(request_id) is not None
    return Offer(
        raw=raw,
        answer=answer,
        token=token,
        request_id=request_id if usable else None,
        origin=_printable(origin),
        user_agent=_printable(_single(headers, "User-Agent")),
    )


def _read_subprotocols(headers: Headers) -> tuple[bool, str | None, list[str]]:
    """Whether the raw protocol was chosen, what to answer, and the tokens that were offered beside it."""
    try:
        offers = [offer for value in headers.get_all("Sec-WebSocket-Protocol") for offer in parse_subprotocol(value)]
    except InvalidHeader:
        raise Refused(Refusal.MALFORMED) from None
    tokens = [offer[len(_BEARER_OFFER) :] for offer in offers if offer.startswith(_BEARER_OFFER)]
    if JSON_PROTOCOL in offers:
        return False, JSON_PROTOCOL, tokens
    if RAW_PROTOCOL in offers:
        return True, RAW_PROTOCOL, tokens
    if offers:
        raise Refused(Refusal.SUBPROTOCOL)
    return True, None, tokens


def _one_token(headers: Headers, offered: list[str]) -> str | None:
    authorizations = headers.get_all("Authorization")
    if len(authorizations) + len(offered) > 1:
        raise Refused(Refusal.TWO_TOKENS)
    if authorizations:
        scheme, _, token = authorizations[0].strip().partition(" ")
        # Any other scheme is no user token; as an empty one it is refused like every bad token (401).
        return token.strip() if scheme.lower() == "bearer" else ""
    return offered[0] if offered else None


def _has_token(query: str) -> bool:
    for member in query.split("&") if query else ():
        name = unquote_plus(member.partition("=")[0]).lower()
        if name in _TOKEN_NAMES or _TOKEN_SHAPE.search(unquote_plus(member)):
            return True
    return False


def _single(headers: Headers, name: str) -> str | None:
    values = headers.get_all(name)
    return values[0] if len(values) == 1 else None


def _printable(text: str | None) -> str | None:
    return None if text is None else _UNPRINTABLE.sub("?", text[:_MAX_METADATA_CHARACTERS])
