"""Flood control of the audit trail: refusals that a caller can cause at no cost, a thousand with one frame. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from sidecar.core.ports import AuditEvent, AuditTrail, AuditValue, Clock

SINGLES_PER_SECOND: Final = 10
MAX_ADDRESSES: Final = 10_000
OTHER_ADDRESSES: Final = "other"
"""The address in the counted records of all those that found no place in the table."""


@dataclass(slots=True)
class _Bucket:
    """When the last single records were made, and what was only counted since the last tick. On `Clock.monotonic`.

    `source` is what its counted record says of where they came from.
    """

    source: dict[str, AuditValue]
    singles: deque[float] = field(default_factory=deque)
    counted: int = 0
    counted_since: float = 0.0


class Refusals:
    """Records each refused connection singly, up to ten in any second per address; counts the others.

    The table holds `max_addresses`; an address beyond that shares one bucket with all such others, whose singles carry
    their own address and whose counted record carries OTHER_ADDRESSES. An address leaves the table when it was quiet
    for a second.
    """

    def __init__(
        self,
        audit: AuditTrail,
        clock: Clock,
        *,
        singles_per_second: int = SINGLES_PER_SECOND,
        max_addresses: int = MAX_ADDRESSES,
    ) -> None:
        self._audit = audit
        self._clock = clock
        self._singles_per_second = singles_per_second
        self._max_addresses = max_addresses
        self._buckets: dict[tuple[str, str], _Bucket] = {}
        self._others = _Bucket({"address": OTHER_ADDRESSES})

    def refused(
        self,
        address: str,
        reason: str,
        *,
        event: AuditEvent = AuditEvent.CONNECT_REFUSED,
        connection_id: str = "",
        **fields: AuditValue,
    ) -> None:
        """Something from that address was refused: recorded as `event`, or counted.

        With the `connection_id`, where it is known whose it is, each context has its own ten in a second.
        """
        now = self._clock.monotonic()
        bucket = self._bucket(address, connection_id)
        if connection_id:
            fields["connection_id"] = connection_id
        singles = bucket.singles
        while singles and now - singles[0] >= 1.0:
            singles.popleft()
        if len(singles) < self._singles_per_second:
            singles.append(now)
            self._audit.record(event, address=address, reason=reason, **fields)
            return
        if not bucket.counted:
            bucket.counted_since = now
        bucket.counted += 1

    def tick(self) -> None:
        """Call once a second, and once more before the trail closes: one REFUSALS_COUNTED for each counting address.

        Its `count` is of those not recorded singly, its `seconds` the time from the first of them to now.
        """
        now = self._clock.monotonic()
        self._tell(self._others, now)
        for key, bucket in list(self._buckets.items()):
            self._tell(bucket, now)
            if now - bucket.singles[-1] >= 1.0:
                del self._buckets[key]

    def _bucket(self, address: str, connection_id: str) -> _Bucket:
        bucket = self._buckets.get((address, connection_id))
        if bucket is None:
            if len(self._buckets) >= self._max_addresses:
                return self._others
            source: dict[str, AuditValue] = {"address": address}
            if connection_id:
                source["connection_id"] = connection_id
            bucket = self._buckets[address, connection_id] = _Bucket(source)
        return bucket

    def _tell(self, bucket: _Bucket, now: float) -> None:
        if bucket.counted:
            seconds = round(now - bucket.counted_since, 3)
            self._audit.record(AuditEvent.REFUSALS_COUNTED, **bucket.source, count=bucket.counted, seconds=seconds)
            bucket.counted = 0
