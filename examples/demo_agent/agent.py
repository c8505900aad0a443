"""The demo agent's own HTTP endpoint, as an existing service has one: it authenticates its users by itself and is
handed the context token beside the request, in `X-Context-Token`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import jwt
from aiohttp import hdrs, web
from answers import answer  # type: ignore[import-not-found] # beside this file
from delivery import Delivery, DeliveryError  # type: ignore[import-not-found]

from sidecar.api.v1.context_service_pb2 import GetContextRequest
from sidecar.api.v1.context_service_pb2_grpc import ContextServiceStub
from sidecar.api.v1.delivery_service_pb2 import SendToUserRequest
from sidecar.api.v1.delivery_service_pb2_grpc import DeliveryServiceStub
from sidecar.api.v1.types_pb2 import Message

PAUSE_S: Final = 0.04
CALL_TIMEOUT_S: Final = 5.0
SHUTDOWN_TIMEOUT_S: Final = 2.0
MAX_BODY_BYTES: Final = 16_384
MAX_QUESTION_CHARACTERS: Final = 2_000
MAX_ANSWERS: Final = 200
HTTP_STATUS: Final = {
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 429,
    "UNAVAILABLE": 503,
}
CHANNEL_OPTIONS: Final = (("grpc.keepalive_time_ms", 10_000), ("grpc.keepalive_permit_without_calls", 1))

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class SettingsError(Exception):
    """An environment variable that cannot be used; names it and the rule."""


@dataclass(frozen=True)
class Settings:
    """Where to listen (loopback only), where the sidecar is, and how this service knows its own users."""

    sidecar: str
    host: str
    port: int
    allowed_origins: frozenset[str]
    key: bytes
    issuer: str
    audience: str

    @property
    def url_host(self) -> str:
        """The host as it stands in a URL."""
        return f"[{self.host}]" if ":" in self.host else self.host

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Settings:
        """Raises SettingsError."""
        host, port = _loopback(environ.get("DEMO_AGENT_LISTEN", "127.0.0.1:8090"))
        origins = environ.get("DEMO_AGENT_ALLOWED_ORIGINS", "").split(",")
        try:
            key = Path(_required(environ, "DEMO_USER_TOKEN_KEY_FILE")).read_bytes().removesuffix(b"\n")
        except OSError:
            raise SettingsError("DEMO_USER_TOKEN_KEY_FILE must be a readable file") from None
        return cls(
            sidecar=_required(environ, "SIDECAR_GRPC_ENDPOINT"),
            host=host,
            port=port,
            allowed_origins=frozenset(origin.strip() for origin in origins if origin.strip()),
            key=key,
            issuer=_required(environ, "DEMO_USER_TOKEN_ISSUER"),
            audience=_required(environ, "DEMO_USER_TOKEN_AUDIENCE"),
        )


class DemoAgent:
    """The service: `POST /ask` answers word by word over the asker's WebSocket, `POST /attack` tries what must fail."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._channel = grpc.aio.insecure_channel(settings.sidecar, options=CHANNEL_OPTIONS)
        self._contexts = ContextServiceStub(self._channel)
        self._deliveries = DeliveryServiceStub(self._channel)
        self._delivery = Delivery(self._channel)
        self._answering = asyncio.Semaphore(MAX_ANSWERS)
        app = web.Application(middlewares=[self._guard], client_max_size=MAX_BODY_BYTES)
        app.add_routes([web.post("/ask", self._ask), web.post("/attack", self._attack)])
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT_S)
        self._hosts: frozenset[str] = frozenset()

    async def start(self) -> int:
        """Listen; returns the port."""
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._settings.host, self._settings.port)
        await site.start()
        self._hosts = frozenset(f"{host}:{site.port}" for host in ("127.0.0.1", "localhost", "[::1]"))
        return site.port

    async def close(self) -> None:
        """Stop listening, end the answers under way, hang up. Idempotent."""
        await self._runner.cleanup()
        await self._delivery.close()
        await self._channel.close()

    async def _ask(self, request: web.Request) -> web.Response:
        user = self._authenticate(request)
        body = await _members(request)
        question = _text(body, "question", MAX_QUESTION_CHARACTERS)
        if self._answering.locked():
            raise DeliveryError("RESOURCE_EXHAUSTED", "BUSY")
        token = _context_token(request)
        async with self._answering:
            key = _text(body, "isolation_key", 128, "") or await self._isolation_key(token)
            async with self._delivery.lane(key, token, user) as lane:
                return web.json_response(await _tell(lane, answer(user, question), _text(body, "id", 128, "")))

    async def _attack(self, request: web.Request) -> web.Response:
        """Sends to a context that the caller chose, with the caller's own token, and says what the sidecar answered."""
        user = self._authenticate(request)
        victim = _text(await _members(request), "victim_isolation_key", 128)
        message = Message(event_type="agent.attack", payload=json.dumps({"from": user}).encode())
        send = SendToUserRequest(isolation_key=victim, message=message, expected_user_id=user)
        try:
            await self._call(self._deliveries.SendToUser, send, _context_token(request))
        except DeliveryError as refusal:
            return web.json_response({"code": refusal.code, "reason": refusal.reason})
        return web.json_response({"code": "OK", "reason": ""})

    async def _isolation_key(self, token: str) -> str:
        context = await self._call(self._contexts.GetContext, GetContextRequest(), token)
        return str(context.isolation_key)

    async def _call(self, method: Any, request: Any, token: str) -> Any:
        """A unary call with the caller's context token. Raises DeliveryError."""
        try:
            return await method(request, metadata=(("x-context-token", token),), timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise DeliveryError.from_call(error) from None

    def _authenticate(self, request: web.Request) -> str:
        """The user of this request, by this service's own rules. Raises DeliveryError."""
        scheme, _, token = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        try:
            claims = jwt.decode(
                token if scheme.lower() == "bearer" else "",
                self._settings.key,
                algorithms=["HS256"],
                issuer=self._settings.issuer,
                audience=self._settings.audience,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except Exception:  # noqa: BLE001 - whatever is wrong with a token, it names nobody
            raise DeliveryError("UNAUTHENTICATED", "TOKEN_INVALID") from None
        return str(claims["sub"])

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Only pages of the allowed origins, only under this service's own names; every answer is JSON."""
        origin = request.headers.get(hdrs.ORIGIN)
        if request.headers.get(hdrs.HOST) not in self._hosts:
            return _refusal(403, "PERMISSION_DENIED", "HOST_NOT_ALLOWED")
        if origin is not None and origin not in self._settings.allowed_origins:
            return _refusal(403, "PERMISSION_DENIED", "ORIGIN_NOT_ALLOWED")
        preflight = request.method == hdrs.METH_OPTIONS
        response = web.Response(status=204) if preflight else await _answered(request, handler)
        if origin is not None:
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = "POST"
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = "Authorization, Content-Type, X-Context-Token"
        response.headers[hdrs.VARY] = hdrs.ORIGIN
        return response


async def _tell(lane: Any, words: list[str], question_id: str) -> dict[str, int]:
    """Send the words one by one, then say that it was all."""
    answer_id = uuid.uuid4().hex
    for index, word in enumerate(words):
        await lane.send(_message("agent.word", {"text": word}, f"{answer_id}.{index}", question_id))
        await asyncio.sleep(PAUSE_S)
    done = _message("agent.done", {"words": len(words)}, f"{answer_id}.done", question_id)
    receipt = await lane.send(done)
    return {"words": len(words), "last_sequence": receipt.sequence}


def _message(event_type: str, data: dict[str, Any], message_id: str, reply_to: str) -> Message:
    payload = json.dumps(data, ensure_ascii=False).encode()
    return Message(event_type=event_type, payload=payload, message_id=message_id, reply_to=reply_to)


def _context_token(request: web.Request) -> str:
    """The context token that came beside the request; whether it is any good, the sidecar says."""
    token = request.headers.get("X-Context-Token", "")
    if not (token.isascii() and token.isprintable()):
        raise DeliveryError("UNAUTHENTICATED", "TOKEN_INVALID")
    return token


async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except DeliveryError as error:
        return _refusal(HTTP_STATUS.get(error.code, 502), error.code, error.reason)
    except web.HTTPException as error:
        return _refusal(error.status, "NOT_FOUND" if error.status == 404 else "INVALID_ARGUMENT", "BAD_REQUEST")


def _refusal(status: int, code: str, reason: str) -> web.Response:
    return web.json_response({"code": code, "reason": reason}, status=status)


async def _members(request: web.Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.read())
    except (ValueError, RecursionError):
        body = None
    if request.content_type != "application/json" or not isinstance(body, dict):
        raise DeliveryError("INVALID_ARGUMENT", "BAD_REQUEST")
    return body


def _text(body: dict[str, Any], name: str, limit: int, default: str | None = None) -> str:
    """A member that is text of 1 to `limit` characters; where a default is given it may be absent."""
    value = body.get(name, default)
    if default is not None and value == default:
        return default
    if not isinstance(value, str) or not 0 < len(value) <= limit or not _encodes(value):
        raise DeliveryError("INVALID_ARGUMENT", "BAD_REQUEST")
    return value


def _encodes(text: str) -> bool:
    """False for lone surrogates, which JSON can write and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _required(environ: Mapping[str, str], name: str) -> str:
    if not environ.get(name):
        raise SettingsError(f"{name} must be set")
    return environ[name]


def _loopback(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback or not port.isdecimal() or int(port) > 65_535:
        raise SettingsError("DEMO_AGENT_LISTEN must be host:port on loopback")
    return host, int(port)
