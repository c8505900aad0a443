"""Where the sidecar is looked for, what gRPC is told, and what counts as serving."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2

from sidecar_client.channel import channel_options, settings_from
from sidecar_client.errors import TransportError
from sidecar_client.health import is_serving

ENVIRONMENT = {"SIDECAR_GRPC_ENDPOINT": "sidecar:1", "SIDECAR_SERVICE_TOKEN": "of the environment"}


def test_what_is_given_comes_before_the_environment_and_that_before_the_defaults() -> None:
    given = settings_from("unix:/run/s", "given", None, 5.0, 4, ENVIRONMENT)
    assert (given.endpoint, given.service_token) == ("unix:/run/s", "given")
    found = settings_from(None, None, None, 5.0, 4, ENVIRONMENT)
    assert (found.endpoint, found.service_token) == ("sidecar:1", "of the environment")
    assert settings_from(None, "", None, 5.0, 4, ENVIRONMENT).service_token == ""
    bare = settings_from(None, None, None, 5.0, 4, {})
    assert (bare.endpoint, bare.service_token) == ("127.0.0.1:50051", "")
    assert "of the environment" not in repr(found)


@pytest.mark.parametrize("endpoint", ["sidecar", "sidecar:", "sidecar:http", ":"])
def test_an_endpoint_that_leads_nowhere_is_refused(endpoint: str) -> None:
    with pytest.raises(ValueError, match="endpoint"):
        settings_from(endpoint, None, None, 5.0, 4, {})


def test_what_grpc_is_told() -> None:
    options = dict(channel_options())
    # The sidecar cuts clients that ping less than 5 s apart, and lets them ping every 10 s without a call.
    assert options["grpc.keepalive_time_ms"] == 10_000
    assert options["grpc.keepalive_permit_without_calls"] == 1
    assert options["grpc.http2.max_pings_without_data"] == 0
    assert options["grpc.service_config_disable_resolution"] == 1


def test_only_serving_is_serving() -> None:
    kinds = health_pb2.HealthCheckResponse
    for status in kinds.ServingStatus.values():
        assert is_serving(kinds(status=status).SerializeToString()) == (status == kinds.SERVING)


async def test_ready_is_told_when_the_sidecar_says_so(open_client: Callable[..., Any]) -> None:
    """Not before: it is up, and drains or has yet to begin."""
    serving = asyncio.Event()
    watched = asyncio.Event()

    async def watch(request: bytes, call: Any) -> AsyncIterator[bytes]:
        yield health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.NOT_SERVING).SerializeToString()
        watched.set()
        await serving.wait()
        yield health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING).SerializeToString()

    server = grpc.aio.server()
    handlers: dict[str, Any] = {"Watch": grpc.unary_stream_rpc_method_handler(watch)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("grpc.health.v1.Health", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with open_client(endpoint=f"127.0.0.1:{port}") as client:
            with pytest.raises(TransportError):
                await client.wait_until_ready(0.2)
            watched.clear()
            waiting = asyncio.ensure_future(client.wait_until_ready(20))
            await watched.wait()
            assert not waiting.done()
            serving.set()
            await waiting
    finally:
        await server.stop(None)


def certificate() -> tuple[bytes, bytes]:
    """A key and a certificate for localhost, signed by itself, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    return key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain), built.public_bytes(pem)


async def test_with_credentials_the_channel_is_tls(open_client: Callable[..., Any]) -> None:
    key, signed = certificate()

    async def watch(request: bytes, call: Any) -> AsyncIterator[bytes]:
        yield health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING).SerializeToString()

    server = grpc.aio.server()
    handlers: dict[str, Any] = {"Watch": grpc.unary_stream_rpc_method_handler(watch)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("grpc.health.v1.Health", handlers),))
    port = server.add_secure_port("localhost:0", grpc.ssl_server_credentials([(key, signed)]))
    await server.start()
    try:
        trusting = grpc.ssl_channel_credentials(signed)
        async with open_client(endpoint=f"localhost:{port}", credentials=trusting) as client:
            await client.wait_until_ready(20)
        for credentials in (None, grpc.ssl_channel_credentials(certificate()[1])):
            async with open_client(endpoint=f"localhost:{port}", credentials=credentials) as client:
                with pytest.raises(TransportError):
                    await client.wait_until_ready(0.3)
    finally:
        await server.stop(None)
