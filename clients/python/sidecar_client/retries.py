"""Whether a failed call is sent again, and when. Pure but for the randomness that it is given."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

import grpc

from sidecar_client.back_off import BackOff
from sidecar_client.errors import NoAgent, SidecarError, TransportError, Unavailable

BASE_S: Final = 0.05
CAP_S: Final = 2.0
RECONNECT_S: Final = 0.15
"""Before a try that nobody answered is made again. Without a connection each fails at once: four of them, with three
such pauses, outlast the one between two attempts to connect (`channel_options`): a sidecar that is back is found."""


class Retries:
    """One call's tries, within its one deadline.

    Sent again: UNAVAILABLE, with the sidecar's RetryInfo or without (a connection that broke), because the same
    message_id is taken once. Not sent again: RESOURCE_EXHAUSTED, which is the caller's to decide, a deadline that
    passed, and calls that are not repeatable.
    """

    def __init__(
        self,
        *,
        repeatable: bool,
        deadline: float,
        max_attempts: int,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        """`deadline` is of the same clock as `now` in `wait_s`."""
        self._left = max_attempts - 1 if repeatable else 0
        self._deadline = deadline
        self._unanswered = False
        self._back_off = BackOff(BASE_S, CAP_S, uniform)

    def wait_s(self, error: SidecarError, now: float) -> float | None:
        """The seconds after which to try again; None: give up, this error is the answer.

        The error is told of the tries before it: a refusal does not say what became of them.
        """
        error.unanswered_before = self._unanswered
        self._unanswered = not error.definite
        if not self._left or not _passing(error):
            return None
        self._left -= 1
        at_least_s = RECONNECT_S if isinstance(error, TransportError) else error.retry_after_s or 0.0
        wait_s = self._back_off.next_s(at_least_s=at_least_s)
        # An answer after the deadline is none: better the error that says why.
        return wait_s if now + wait_s < self._deadline else None


def _passing(error: SidecarError) -> bool:
    if isinstance(error, TransportError):
        return error.code is grpc.StatusCode.UNAVAILABLE
    return isinstance(error, Unavailable) and not isinstance(error, NoAgent)
