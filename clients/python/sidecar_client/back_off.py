"""How long to wait before the next try: full jitter, so that many clients do not come back at once. Pure."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

_MAX_DOUBLINGS: Final = 32


class BackOff:
    """Uniform between 0 and a bound that doubles with every try, from `base_s` up to `cap_s`."""

    def __init__(self, base_s: float, cap_s: float, uniform: Callable[[], float] = random.random) -> None:
        """`uniform` gives numbers of [0, 1)."""
        self._base_s = base_s
        self._cap_s = cap_s
        self._uniform = uniform
        self._tries = 0

    def next_s(self, at_least_s: float = 0.0) -> float:
        """The seconds to wait before the next try; what somebody asked for is added, not shortened."""
        bound_s = min(self._cap_s, self._base_s * 2.0 ** min(self._tries, _MAX_DOUBLINGS))
        self._tries += 1
        return at_least_s + bound_s * self._uniform()

    @property
    def tries(self) -> int:
        """How many have failed since it last went well."""
        return self._tries

    def reset(self) -> None:
        """It went well: begin from `base_s` again."""
        self._tries = 0

    def __repr__(self) -> str:
        return f"BackOff(base_s={self._base_s}, cap_s={self._cap_s}, tries={self._tries})"
