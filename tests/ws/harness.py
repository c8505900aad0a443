"""A WebSocket edge in the test's own process, with a clock that the test moves and a trail that it can hold."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
from collections.abc import Callable, Sequence
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.frames import Close
from websockets.typing import Subprotocol

from sidecar.cluster.local import LocalOwnerDirectory
from sidecar.core.context_factory import ConnectionContextFactoryManager
from sidecar.core.errors import ErrorReason, Unavailable
from sidecar.core.factory import WebSocketManagerFactory
from sidecar.core.identity import UserExecutionContext
from sidecar.core.limits import Limits
from sidecar.core.manager import IsolatedWebSocketManager
from sidecar.core.message import Instant, Message, Receipt
from sidecar.core.ports import AuditEvent, AuditValue
from sidecar.core.statistics import SecurityCounters
from sidecar.core.writes import WriteBatch
from sidecar.security.audit_record import AuditRecord
from sidecar.security.context_keys import ContextTokenKeys
from sidecar.security.context_tokens import ContextTokenAuthority
from sidecar.security.keys import hmac_key_set
from sidecar.security.refusals import Refusals
from sidecar.security.user_tokens import IssuerSettings, UserTokenVerifier, mint_user_token
from sidecar.storage.memory import MemoryOutboxStore
from sidecar.ws.edge import WebSocketEdge
from sidecar.ws.ports import GrantingAuditTrail
from sidecar.ws.settings import WebSocketSettings

NOW = 1_800_000_000
SECRET = b"the shared secret of this issuer and no other"
OTHER_SECRET = b"the shared secret of quite another issuer"
JSON_PROTOCOL, RAW_PROTOCOL = "sidecar.v1.json", "sidecar.v1.raw"
Frame = dict[str, Any]


class FakeClock:
    """Time that moves when it is told to."""

    def __init__(self) -> None:
        self.wall = float(NOW)
        self.ticks = 1000.0

    def monotonic(self) -> float:
        return self.ticks

    def time(self) -> float:
        return self.wall

    def now(self) -> Instant:
        return Instant(self.ticks, self.wall)

    def advance(self, seconds: float) -> None:
        self.wall += seconds
        self.ticks += seconds


class Trail:
    """An audit trail that keeps what it is told, and whose writes can be held back or refused."""

    def __init__(self) -> None:
        self.records: list[AuditRecord] = []
        self.failing = False
        self.broken = False
        self.waiting = 0
        self._gate = asyncio.Event()
        self._gate.set()
        self._news = asyncio.Event()

    def record(self, event: AuditEvent, context: UserExecutionContext | None = None, /, **fields: AuditValue) -> None:
        self._keep(AuditRecord(event, context, fields))

    async def grant(self, *records: AuditRecord) -> None:
        self.waiting += 1
        self._tell()
        try:
            await self._gate.wait()
        finally:
            self.waiting -= 1
        if self.broken:
            raise RuntimeError("text that nobody is to see")
        if self.failing:
            raise Unavailable(ErrorReason.AUDIT_UNAVAILABLE)
        for record in records:
            self._keep(record)

    def hold(self) -> None:
        self._gate.clear()

    def release(self) -> None:
        self._gate.set()

    def of(self, event: AuditEvent) -> list[AuditRecord]:
        return [record for record in self.records if record.event is event]

    def reasons(self, event: AuditEvent = AuditEvent.CONNECT_REFUSED) -> list[AuditValue]:
        return [record.fields.get("reason") for record in self.of(event)]

    async def until(self, happened: Callable[[], object]) -> None:
        """Wait until `happened`, looked at after each record and each grant that begins to wait."""
        while not happened():
            self._news.clear()
            await self._news.wait()

    async def seen(self, event: AuditEvent, count: int = 1) -> list[AuditRecord]:
        await self.until(lambda: len(self.of(event)) >= count)
        return self.of(event)

    def _keep(self, record: AuditRecord) -> None:
        self.records.append(record)
        self._tell()

    def _tell(self) -> None:
        self._news.set()


class Client:
    """A client of the JSON protocol."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.welcome: Frame = {}

    @property
    def key(self) -> str:
        return str(self.welcome["isolation_key"])

    async def hello(self, **members: Any) -> Frame:
        await self.send(type="hello", **members)
        self.welcome = await self.receive()
        assert self.welcome["type"] == "welcome", self.welcome
        return self.welcome

    async def send(self, **members: Any) -> None:
        await self.connection.send(json.dumps(members))

    async def receive(self) -> Frame:
        frame = json.loads(await self.connection.recv())
        assert isinstance(frame, dict)
        return frame

    async def ask(self, **members: Any) -> Frame:
        await self.send(**members)
        return await self.receive()

    async def closed(self) -> Close | None:
        """How the server closed; None for a connection that broke off. What still comes before is passed by."""
        return await closed(self.connection)


async def until(happened: Callable[[], object]) -> None:
    """Let the loop turn until `happened`: for what tells nobody."""
    async with asyncio.timeout(5):
        while not happened():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0)


async def closed(connection: ClientConnection) -> Close | None:
    """How the server closed; None for a connection that broke off."""
    try:
        while True:
            await connection.recv()
    except ConnectionClosed as end:
        return end.rcvd


class Stream:
    """A client that says whatever bytes a test wants, and reads only when told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def upgrade(self, *headers: tuple[str, str]) -> bytes:
        lines = [f"{name}: {value}" for name, value in (*USUAL_HEADERS, *headers)]
        self.writer.write("\r\n".join(["GET /v1/connect HTTP/1.1", *lines, "", ""]).encode())
        head = await self.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        return head

    async def hello(self, token: str) -> Frame:
        await self.upgrade(("Sec-WebSocket-Protocol", JSON_PROTOCOL))
        self.writer.write(masked(0x1, json.dumps({"type": "hello", "token": token}).encode()))
        opcode, payload = await self.frame()
        assert opcode == 0x1
        welcome = json.loads(payload)
        assert isinstance(welcome, dict)
        return welcome

    async def frame(self) -> tuple[int, bytes]:
        """The next frame of the server: its opcode and payload."""
        first, length = await self.reader.readexactly(2)
        if length >= 126:
            length = int.from_bytes(await self.reader.readexactly(2 if length == 126 else 8), "big")
        return first & 0x0F, await self.reader.readexactly(length)

    async def close_frame(self) -> tuple[int, str]:
        """The server's close; other frames before it are passed by."""
        while True:
            opcode, payload = await self.frame()
            if opcode == 0x8:
                return int.from_bytes(payload[:2], "big"), payload[2:].decode()

    async def ended(self) -> bytes:
        """What still comes until the connection has ended, however it does."""
        data = bytearray()
        try:
            while chunk := await self.reader.read(65_536):
                data += chunk
        except ConnectionError:
            pass
        return bytes(data)

    def abort(self) -> None:
        self.writer.transport.abort()


def masked(opcode: int, payload: bytes = b"", *, fin: bool = True, reserved: int = 0, mask: bool = True) -> bytes:
    """One client frame, or what a wrong client takes for one (RFC 6455 §5.2)."""
    first = (0x80 if fin else 0) | reserved << 4 | opcode
    length, bit = len(payload), 0x80 if mask else 0
    if length < 126:
        head = bytes((first, bit | length))
    elif length < 65_536:
        head = bytes((first, bit | 126)) + length.to_bytes(2, "big")
    else:
        head = bytes((first, bit | 127)) + length.to_bytes(8, "big")
    return head + (bytes(4) if mask else b"") + payload  # masked with zeros: as it was


class Harness:
    """One edge and all that it is handed. Call `start`, and `close` at the end."""

    def __init__(
        self,
        settings: dict[str, Any] | None = None,
        limits: Limits | None = None,
        *,
        audit: GrantingAuditTrail | None = None,
        clock: FakeClock | None = None,
    ) -> None:
        self.clock = clock or FakeClock()
        self.trail = Trail()
        audit = audit or self.trail
        self.counters = SecurityCounters()
        self.limits = limits or Limits()
        self.factory = WebSocketManagerFactory(
            self.limits,
            store=MemoryOutboxStore(),
            owners=LocalOwnerDirectory(),
            clock=self.clock,
            counters=self.counters,
            randomness=secrets.token_hex,
            writes=WriteBatch(),
        )
        issuer = IssuerSettings("issuer", "sidecar", ("HS256",), hmac_key_set(SECRET, ("HS256",)), ("default", "other"))
        second = IssuerSettings("second", "sidecar", ("HS256",), hmac_key_set(OTHER_SECRET, ("HS256",)), ("third",))
        self.tokens = ContextTokenAuthority(ContextTokenKeys(None, now=NOW), self.clock)
        self.settings = WebSocketSettings(**{"host": "127.0.0.1", "close_timeout_s": 0.5, **(settings or {})})
        self.refusals = Refusals(audit, self.clock)
        self.contexts = ConnectionContextFactoryManager(b"s" * 32, audit, secrets.token_hex)
        self.edge = WebSocketEdge(
            self.settings,
            users=UserTokenVerifier([issuer, second], self.clock),
            contexts=self.contexts,
            factory=self.factory,
            tokens=self.tokens,
            audit=audit,
            refusals=self.refusals,
            counters=self.counters,
            clock=self.clock,
            randomness=secrets.token_hex,
        )
        self._clients: list[ClientConnection] = []
        self._streams: list[Stream] = []

    async def start(self) -> None:
        await self.edge.start()

    async def close(self) -> None:
        self.trail.release()
        for client in self._clients:
            client.transport.abort()
        for stream in self._streams:
            stream.abort()
        await self.edge.close()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.edge.port}/v1/connect"

    def token(self, subject: str = "alice", *, ttl_s: int = 3600, secret: bytes = SECRET, **claims: Any) -> str:
        given = {"issuer": "issuer", "audience": "sidecar", "tenant_id": None, "session_id": None, **claims}
        return mint_user_token(secret, subject=subject, ttl_s=ttl_s, now=self.clock.time(), **given)

    async def connect(
        self, *offers: str, token: str | None = None, headers: Sequence[tuple[str, str]] = (), **options: Any
    ) -> ClientConnection:
        authorization = [("Authorization", f"Bearer {token}")] if token is not None else []
        connection = await connect(
            self.url,
            subprotocols=[Subprotocol(offer) for offer in offers] or None,
            additional_headers=[*authorization, *headers],
            compression=None,
            ping_interval=None,
            close_timeout=1,
            proxy=None,
            **options,
        )
        self._clients.append(connection)
        return connection

    async def client(self, **options: Any) -> Client:
        """A connection of the JSON protocol that has not said hello."""
        return Client(await self.connect(JSON_PROTOCOL, **options))

    async def welcomed(self, subject: str = "alice", **claims: Any) -> Client:
        client = await self.client()
        await client.hello(token=self.token(subject, **claims))
        return client

    async def stream(self, *, receive_buffer_bytes: int | None = None) -> Stream:
        """A TCP connection that has not said anything."""
        plain = socket.socket()
        if receive_buffer_bytes is not None:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        plain.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", self.edge.port))
        except OSError:
            plain.close()
            raise
        stream = Stream(*await asyncio.open_connection(sock=plain, limit=4_096))
        self._streams.append(stream)
        return stream

    async def raw(self, subject: str = "alice", *offers: str) -> ClientConnection:
        return await self.connect(*offers, token=self.token(subject))

    def now(self) -> Instant:
        return Instant(self.clock.monotonic(), self.clock.time())

    def manager(self, key: str) -> IsolatedWebSocketManager:
        return self.factory.get_manager(key)

    def manager_of(self, connection_id: str) -> IsolatedWebSocketManager:
        manager = self.factory.find_by_connection_id(connection_id)
        assert manager is not None
        return manager

    def send(self, manager: IsolatedWebSocketManager, payload: bytes, **members: Any) -> Receipt:
        members = {"message_id": "", "event_type": "", **members}
        receipt = manager.send_to_user(manager.context, Message(payload=payload, **members), self.now())
        assert isinstance(receipt, Receipt)
        return receipt

    def advance(self, seconds: float) -> None:
        """Move time and let the factory look after what is due."""
        self.clock.advance(seconds)
        self.factory.tick(self.now())

    async def exchange(self, request: bytes) -> tuple[int, bytes, bytes]:
        """Send these bytes as a request. Returns the status, the head and the body of the answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.edge.port)
        try:
            writer.write(request)
            answer = await reader.read()
        finally:
            writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        return (int(head.split(b" ", 2)[1]) if head else 0), head, body

    async def ask(
        self, *headers: tuple[str, str | None], path: str = "/v1/connect", method: str = "GET"
    ) -> tuple[int, str]:
        """A handshake with these headers beside the ones that every handshake has. Returns status and body."""
        given = {name.lower() for name, _ in headers}
        usual: list[tuple[str, str | None]] = [pair for pair in USUAL_HEADERS if pair[0].lower() not in given]
        lines = [f"{name}: {value}" for name, value in (*usual, *headers) if value is not None]
        request = "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode("latin-1")
        status, _, body = await self.exchange(request)
        return status, body.decode()


USUAL_HEADERS = (
    ("Host", "sidecar.example"),
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ("Sec-WebSocket-Version", "13"),
)
