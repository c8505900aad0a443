"""The load's users who ask an agent, one message at a time each, and time the answer's first chunk."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from benchmarks.load import PAYLOAD_BYTES
from benchmarks.sockets import Client, Opcode, Tally, client_frame

ACCEPTED: Final = b'{"type":"accepted"'
ERROR: Final = b'{"type":"error"'
_HEAD, _TAIL = '{"question":"', '","text":"'


class Rounds:
    """So many rounds, shared by the users who ask: each asks again, after a pause, while there are any left."""

    def __init__(self, count: int, pause_s: float = 0.0) -> None:
        self.latencies_s: list[float] = []
        self._left = count
        self._pause_s = pause_s
        self._loop = asyncio.get_running_loop()

    def next(self, user: AskingClient) -> None:
        """Have the user ask, if there is anything left to ask."""
        if self._left:
            self._left -= 1
            if self._pause_s:
                self._loop.call_later(self._pause_s, user.ask, self)
            else:
                user.ask(self)


class AskingClient(Client):
    """One user. An answer that is none, or another's, fails the run; so does a message that is not accepted.

    `accepted` counts the sidecar's word for its messages; the relay says none.
    """

    def __init__(self, request: bytes, hello: bytes, tally: Tally) -> None:
        super().__init__(request, hello, tally)
        self.accepted = 0
        self._asked = 0
        self._began = 0.0
        self._expected = b""
        self._rounds: Rounds | None = None

    def ask(self, rounds: Rounds) -> None:
        """Say the next message. The round's time begins."""
        frame, self._expected = self._next_question()
        self._rounds = rounds
        self._began = time.perf_counter()
        self._transport.write(frame)

    def _next_question(self) -> tuple[bytes, bytes]:
        """The frame, and how the answer's ends."""
        self._asked += 1
        data = question(self._asked)
        return client_frame(Opcode.TEXT, data), data

    def _is_message(self, payload: bytes) -> bool:
        if not super()._is_message(payload):
            return False
        if payload.startswith(ACCEPTED):
            self.accepted += 1
            return False
        if payload.startswith(ERROR):
            self._tally.lose(f"a user's message was refused: {payload.decode()}")
            return False
        return True

    def _took(self, messages: int, last: bytes) -> None:
        now = time.perf_counter()
        rounds, self._rounds = self._rounds, None
        if messages != 1 or rounds is None or not last.endswith(self._expected):
            self._tally.lose(f"{messages} answers, of which the last is {last.decode()}")
            return
        rounds.latencies_s.append(now - self._began)
        super()._took(messages, last)
        rounds.next(self)


class SidecarAskingClient(AskingClient):
    """The same in the sidecar's protocol."""

    def _next_question(self) -> tuple[bytes, bytes]:
        self._asked += 1
        data = question(self._asked)
        frame = b'{"type":"message","id":"q-%d","event":"question","data":%b}' % (self._asked, data)
        return client_frame(Opcode.TEXT, frame), data + b"}"


def question(number: int) -> bytes:
    """What a user says: JSON of the same size as a service's message elsewhere."""
    head = f"{_HEAD}{number:07}{_TAIL}"
    return f'{head}{"x" * (PAYLOAD_BYTES - len(head) - 2)}"}}'.encode()
