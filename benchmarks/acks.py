"""The load's client that acknowledges, as real ones do: no more often than the sidecar lets them."""

from __future__ import annotations

import asyncio
from typing import Final

from benchmarks.servers import RunFailed
from benchmarks.sockets import Client, Opcode, Tally, client_frame

ACKS_PER_SECOND: Final = 50
"""What the project's own Python client keeps to, half of the frames that the sidecar takes of one socket by default."""

LATE_S: Final = 2 / ACKS_PER_SECOND
"""After so long the last message is acknowledged."""

_HEAD: Final = b'{"type":"message","sequence":'


class AckingClient(Client):
    """Acknowledges what came in one read with one frame, cumulative; at once, or when it may again.

    `sequence` is the last message that came. One that is missing, doubled or out of order fails the run.
    """

    def __init__(self, request: bytes, hello: bytes, tally: Tally, sequence: int = 0) -> None:
        super().__init__(request, hello, tally)
        self.sequence = sequence
        self._loop = asyncio.get_running_loop()
        self._may_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def _took(self, messages: int, last: bytes) -> None:
        sequence = sequence_of(last)
        if sequence != self.sequence + messages:
            self._tally.lose(f"after message {self.sequence} came {messages}, the last of them {sequence}")
        self.sequence = sequence
        if self._timer is None:
            wait_s = self._may_at - self._loop.time()
            if wait_s > 0:
                self._timer = self._loop.call_later(wait_s, self._acknowledge)
            else:
                self._acknowledge()
        super()._took(messages, last)

    def _acknowledge(self) -> None:
        self._timer = None
        if not self._transport.is_closing():
            self._may_at = self._loop.time() + 1 / ACKS_PER_SECOND
            self._transport.write(ack_frame(self.sequence))
            self._tally.acks += 1


def sequence_of(payload: bytes) -> int:
    """The sequence of a message frame. Raises RunFailed for another, such as a gap."""
    if not payload.startswith(_HEAD):
        raise RunFailed(f"no message but {payload[:200].decode()}")
    return int(payload[len(_HEAD) : payload.index(b",", len(_HEAD))])


def ack_frame(sequence: int) -> bytes:
    """Everything up to that message has come."""
    return client_frame(Opcode.TEXT, b'{"type":"ack","sequence":%d}' % sequence)
