"""Where a client comes from, and how often one address may try. Pure but for the time it is given."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from sidecar.core.limits import TokenBucket

Address = IPv4Address | IPv6Address
UNKNOWN: Final = "unknown"
_MAX_FORWARDED: Final = 32


class ClientAddresses:
    """Says which address a request is counted under; believes only the proxies it is told of."""

    def __init__(self, trusted_proxies: Sequence[str]) -> None:
        self._trusted: tuple[IPv4Network | IPv6Network, ...] = tuple(
            ip_network(network, strict=False) for network in trusted_proxies
        )

    def of(self, peer: object, forwarded: Sequence[str]) -> str:
        """The client's address: the peer's, or behind trusted proxies the nearest one that is none of them.

        `forwarded` are the values of X-Forwarded-For in their order; what stands before an unreadable one is not read.
        """
        address = _parse(peer[0]) if isinstance(peer, tuple) and peer else None
        if address is None:
            return UNKNOWN
        hops = ",".join(forwarded).split(",")[-_MAX_FORWARDED:] if forwarded else []
        while hops and self._is_trusted(address):
            before = _parse(hops.pop().strip())
            if before is None:
                break
            address = before
        return str(address)

    def _is_trusted(self, address: Address) -> bool:
        return any(address in network for network in self._trusted)


class AddressLimiter:
    """Limits attempts and failures an address, in a bounded table; the longest quiet address makes room.

    An IPv6 address counts as its /64, which is what one customer is given (RFC 6177). Loopback is not limited.
    """

    def __init__(self, attempts_per_second: float, failures_per_second: float, max_addresses: int) -> None:
        self._attempts_per_second = attempts_per_second
        self._failures_per_second = failures_per_second
        self._max_addresses = max_addresses
        self._table: OrderedDict[str, _Tries] = OrderedDict()

    def __len__(self) -> int:
        return len(self._table)

    def admit(self, address: str, now: float) -> bool:
        """Count one attempt. False when the address has made too many, or failed too often."""
        tries = self._tries(address, now)
        if tries is None:
            return True
        if now < tries.blocked_until:
            return False
        return not self._attempts_per_second or tries.attempts.take(now) == 0.0

    def failed(self, address: str, now: float) -> None:
        """Count one token that was not good."""
        tries = self._tries(address, now)
        if tries is not None and self._failures_per_second:
            wait_s = tries.failures.take(now)
            if wait_s:
                tries.blocked_until = now + wait_s

    def _tries(self, address: str, now: float) -> _Tries | None:
        key = _network(address)
        if key is None:
            return None
        tries = self._table.get(key)
        if tries is not None:
            self._table.move_to_end(key)
            return tries
        if len(self._table) >= self._max_addresses:
            self._table.popitem(last=False)
        tries = self._table[key] = _Tries(self._attempts_per_second, self._failures_per_second, now)
        return tries


class _Tries:
    __slots__ = ("attempts", "blocked_until", "failures")

    def __init__(self, attempts_per_second: float, failures_per_second: float, now: float) -> None:
        self.attempts = TokenBucket(attempts_per_second, now)
        self.failures = TokenBucket(failures_per_second, now)
        self.blocked_until = 0.0


def _parse(text: object) -> Address | None:
    try:
        address = ip_address(text) if isinstance(text, str) else None
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _network(address: str) -> str | None:
    parsed = _parse(address)
    if parsed is None:
        return address
    if parsed.is_loopback:
        return None
    return str(parsed) if isinstance(parsed, IPv4Address) else str(IPv6Network((parsed, 64), strict=False))
