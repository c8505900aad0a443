"""Whose address a request counts under, and the bounded table of tries."""

from __future__ import annotations

import pytest

from sidecar.ws.addresses import AddressLimiter, ClientAddresses


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        (("10.0.0.1", 1), [], "10.0.0.1"),
        (("10.0.0.1", 1), ["1.2.3.4"], "1.2.3.4"),
        (("10.0.0.1", 1), ["6.6.6.6, 1.2.3.4"], "1.2.3.4"),
        (("10.0.0.1", 1), ["6.6.6.6", "1.2.3.4, 10.0.0.2"], "1.2.3.4"),
        (("10.0.0.1", 1), ["10.0.0.3,10.0.0.2"], "10.0.0.3"),
        (("10.0.0.1", 1), ["1.2.3.4, nonsense"], "10.0.0.1"),
        (("10.0.0.1", 1), ["1.2.3.4, nonsense, 10.0.0.9"], "10.0.0.9"),
        (("10.0.0.1", 1), [""], "10.0.0.1"),
        (("9.9.9.9", 1), ["1.2.3.4"], "9.9.9.9"),
        (("::ffff:10.0.0.1", 1, 0, 0), ["2001:db8::7"], "2001:db8::7"),
        (("fd00::1", 1, 0, 0), ["1.2.3.4"], "1.2.3.4"),
        (("fe80::1%eth0", 1, 0, 0), [], "fe80::1%eth0"),
        (None, ["1.2.3.4"], "unknown"),
        ("", ["1.2.3.4"], "unknown"),
    ],
)
def test_the_nearest_address_that_is_no_trusted_proxy(peer: object, forwarded: list[str], address: str) -> None:
    assert ClientAddresses(("10.0.0.0/8", "fd00::1")).of(peer, forwarded) == address


def test_nobody_is_believed_without_trusted_proxies() -> None:
    assert ClientAddresses(()).of(("127.0.0.1", 1), ["1.2.3.4"]) == "127.0.0.1"


def test_attempts_at_the_limit_and_past_it() -> None:
    limiter = AddressLimiter(3, 0, 10)
    assert [limiter.admit("1.2.3.4", 0.0) for _ in range(4)] == [True, True, True, False]
    assert limiter.admit("1.2.3.5", 0.0)
    assert limiter.admit("1.2.3.4", 0.5)
    assert not limiter.admit("1.2.3.4", 0.5)


def test_failures_block_for_a_while() -> None:
    limiter = AddressLimiter(0, 2, 10)
    for _ in range(2):
        limiter.failed("1.2.3.4", 5.0)
    assert limiter.admit("1.2.3.4", 5.0)
    limiter.failed("1.2.3.4", 5.0)
    assert not limiter.admit("1.2.3.4", 5.4)
    assert limiter.admit("1.2.3.4", 5.5)


def test_no_limits() -> None:
    limiter = AddressLimiter(0, 0, 10)
    for _ in range(100):
        limiter.failed("1.2.3.4", 0.0)
        assert limiter.admit("1.2.3.4", 0.0)


def test_an_ipv6_customer_is_a_network() -> None:
    limiter = AddressLimiter(1, 0, 10)
    assert limiter.admit("2001:db8::1", 0.0)
    assert not limiter.admit("2001:db8::2", 0.0)
    assert limiter.admit("2001:db8:0:1::1", 0.0)
    assert limiter.admit("fe80::1%eth0", 0.0)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "::1"])
def test_loopback_is_not_limited(address: str) -> None:
    limiter = AddressLimiter(1, 1, 10)
    assert all(limiter.admit(address, 0.0) for _ in range(5))
    assert len(limiter) == 0


def test_the_table_is_bounded() -> None:
    limiter = AddressLimiter(1, 1, 3)
    for last in range(1, 4):
        limiter.admit(f"1.2.3.{last}", 0.0)
    assert not limiter.admit("1.2.3.1", 0.0)
    limiter.admit("1.2.3.4", 0.0)
    assert len(limiter) == 3
    assert not limiter.admit("1.2.3.1", 0.0)
    assert limiter.admit("1.2.3.2", 0.0), "the longest quiet one made room"
