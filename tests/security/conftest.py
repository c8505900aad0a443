"""Fixtures of the token tests: a clock, one key pair of each kind, and the watch over a module's running sidecar."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.security.forge import FakeClock
from tests.security.token_watch import Watch, watching
from tests.support.running import RunningSidecar

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(scope="session")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture(scope="session")
def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(scope="session")
def ed_key() -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.generate()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_watch(sidecar: RunningSidecar) -> AsyncIterator[Watch]:
    """Who is watched at the sidecar that the module runs."""
    async with watching(sidecar) as watched:
        yield watched


@pytest_asyncio.fixture(loop_scope="module")
async def watch(module_watch: Watch) -> Watch:
    """The same, with nothing left of the case before."""
    await module_watch.begin_anew()
    return module_watch


def public_pem(key: PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.fixture(scope="session")
def rsa_pem(rsa_key: rsa.RSAPrivateKey) -> bytes:
    return public_pem(rsa_key)


@pytest.fixture(scope="session")
def ec_pem(ec_key: ec.EllipticCurvePrivateKey) -> bytes:
    return public_pem(ec_key)


@pytest.fixture(scope="session")
def ed_pem(ed_key: ed25519.Ed25519PrivateKey) -> bytes:
    return public_pem(ed_key)
