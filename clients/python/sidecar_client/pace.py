"""How fast a user's side may write: below what the sidecar ends a socket for (4005). Pure: it is given the time."""

from __future__ import annotations

from typing import Final

FRAMES_PER_SECOND: Final = 50.0
BYTES_PER_SECOND: Final = 524_288.0
"""Half of the sidecar's defaults: its count has pings and pongs in it too."""


class Pace:
    """Two buckets that fill in a second. A frame goes when both are above nothing, and may leave them in debt."""

    def __init__(self, now: float, frames_per_second: float, bytes_per_second: float) -> None:
        self._rates = (frames_per_second, bytes_per_second)
        self._levels = [frames_per_second, bytes_per_second]
        self._now = now

    def wait_s(self, now: float) -> float:
        """The seconds until the next frame may go; 0: now."""
        passed, self._now = max(0.0, now - self._now), now
        self._levels = [min(rate, level + rate * passed) for rate, level in zip(self._rates, self._levels, strict=True)]
        return max(0.0, *((1.0 - level) / rate for rate, level in zip(self._rates, self._levels, strict=True)))

    def take(self, size: int) -> None:
        """One frame of `size` bytes goes."""
        self._levels[0] -= 1
        self._levels[1] -= size
