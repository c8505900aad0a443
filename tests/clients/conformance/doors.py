"""Other ways to a sidecar's gRPC port: a Unix socket, and TLS with a certificate made on the spot."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

CHUNK_BYTES = 65_536


@dataclass(frozen=True)
class TlsDoor:
    """Where it is, and whom to trust for it."""

    endpoint: str
    ca_file: Path


@asynccontextmanager
async def unix_door(target: str) -> AsyncIterator[str]:
    """A Unix socket before `target` (host:port); its gRPC address."""
    with tempfile.TemporaryDirectory(prefix="door-") as folder:
        path = f"{folder}/grpc.sock"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        async with _serving(listener, target):
            yield f"unix:{path}"


@asynccontextmanager
async def tls_door(target: str) -> AsyncIterator[TlsDoor]:
    """TLS before `target`, as a proxy ends it: HTTP/2 by ALPN (RFC 7301), a certificate for `localhost`."""
    with tempfile.TemporaryDirectory(prefix="door-") as folder:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["h2"])
        ca_file, key_file = _certificate(Path(folder))
        context.load_cert_chain(ca_file, key_file)
        listener = socket.create_server(("127.0.0.1", 0))
        async with _serving(listener, target, context):
            yield TlsDoor(f"localhost:{listener.getsockname()[1]}", ca_file)


@asynccontextmanager
async def _serving(listener: socket.socket, target: str, context: ssl.SSLContext | None = None) -> AsyncIterator[None]:
    """Pass on what comes in, until the block ends; then all of it is closed, in the middle of a handshake too.

    Without asyncio's own server: that leaves open what it is about to accept when it is closed (Python 3.11).
    """
    loop = asyncio.get_running_loop()
    doors: list[asyncio.Task[None]] = []

    def accept() -> None:
        doors.append(loop.create_task(_pass_on(listener.accept()[0], target, context)))

    listener.listen()
    listener.setblocking(False)
    loop.add_reader(listener, accept)
    try:
        yield
    finally:
        loop.remove_reader(listener)
        listener.close()
        await asyncio.sleep(0)  # the last of them begin: one that has not begun closes nothing
        for door in doors:
            door.cancel()
        await asyncio.gather(*doors)


async def _pass_on(connection: socket.socket, target: str, context: ssl.SSLContext | None) -> None:
    loop = asyncio.get_running_loop()
    host, _, port = target.rpartition(":")
    made: list[asyncio.StreamWriter] = []
    reader = asyncio.StreamReader(loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, lambda _, writer: made.append(writer), loop=loop)
    transports: list[asyncio.BaseTransport] = []
    try:
        transports += [(await loop.connect_accepted_socket(lambda: protocol, connection))[0]]
        (writer,) = made
        if context is not None:
            await writer.start_tls(context)
        inner_reader, inner_writer = await asyncio.open_connection(host, int(port))
        transports += [writer.transport, inner_writer.transport]
        async with asyncio.TaskGroup() as both:
            both.create_task(_copy(reader, inner_writer))
            both.create_task(_copy(inner_reader, writer))
    except* (OSError, asyncio.CancelledError):
        pass
    finally:
        for transport in transports:
            transport.abort()  # type: ignore[attr-defined]
        connection.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(CHUNK_BYTES):
        writer.write(data)
        await writer.drain()
    with suppress(OSError):
        writer.write_eof() if writer.can_write_eof() else writer.close()


def _certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate that signs itself, and its key, as PEM files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    ca_file, key_file = folder / "ca.pem", folder / "key.pem"
    ca_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    key_file.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return ca_file, key_file
