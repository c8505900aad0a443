"""A response stream: an answer in chunks, in order and each once, with an end that the client sees.

The sidecar takes only the chunk that is next. So a chunk whose fate is not known is sent again under its own index
before anything else is, whatever broke in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from sidecar_client.agent_context import AgentContext
from sidecar_client.answering import Answering
from sidecar_client.back_off import BackOff
from sidecar_client.errors import (
    ManagerGone,
    NoAgent,
    ResourceExhausted,
    SidecarError,
    StreamCancelled,
    Unavailable,
    bad_request,
    error_from_reason,
)
from sidecar_client.messages import encode_json, new_message_id
from sidecar_client.retries import BASE_S, CAP_S
from sidecar_client.values import ContentType, Receipt, StreamPlace, StreamState

REPLY_TIMEOUT_S: Final = 30.0
FAIL_TIMEOUT_S: Final = 5.0
_ABSENT: Final = object()


class _Chunk(NamedTuple):
    position: int
    message_id: str
    payload: bytes
    content_type: ContentType
    state: StreamState
    headers: Mapping[str, str]


class ReplyStream:
    """One answer. Made by `InboundMessage.reply`; entered once. Chunks are sent one after the other.

    Leaving the block ends the stream; leaving it by an exception fails it, without a word of the exception.
    """

    def __init__(
        self,
        context: AgentContext,
        answering: Answering,
        *,
        reply_to: str,
        event_type: str,
        stream_id: str | None,
        timeout_s: float,
    ) -> None:
        self.id = stream_id or new_message_id()
        self._context = context
        self._answering = answering
        self._reply_to = reply_to
        self._event_type = event_type
        self._timeout_s = timeout_s
        self._next_index = 0
        self._unsettled: _Chunk | None = None
        self._turn = asyncio.Lock()
        self._over = False

    def __repr__(self) -> str:
        return f"ReplyStream(id={self.id!r}, next_index={self._next_index}, {'over' if self._over else 'open'})"

    async def __aenter__(self) -> Self:
        self._answering.streams.add(self.id)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._over:
                return
            if error is None:
                await self.end()
            elif not self._answering.cancelled and not self._context.ended:
                # What goes wrong here says less than what went wrong in the block.
                with suppress(SidecarError, TimeoutError):
                    async with asyncio.timeout(FAIL_TIMEOUT_S):
                        await self.fail()
        finally:
            self._over = True
            self._answering.streams.discard(self.id)

    async def send(
        self,
        *,
        json: Any = _ABSENT,
        text: str | None = None,
        binary: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Receipt:
        """Send the next chunk: one of `json`, `text` and `binary`. Returns when the sidecar has accepted it.

        Tried again until the stream's `timeout_s` where the sidecar cannot take it now or the client is slow. When the
        client wants no more, the handler is cancelled (asyncio.CancelledError); in another task, and where events are
        read with `async for`, StreamCancelled is raised. Cancelled, the chunk may be taken, before whatever is next.
        """
        return await self._put(StreamState.OPEN, _content(json, text, binary), headers)

    async def end(self, *, json: Any = _ABSENT, text: str | None = None) -> Receipt:
        """Send the last chunk, which may say nothing. The end of the block does it by itself."""
        return await self._put(StreamState.END, _last(json, text), None)

    async def fail(self, *, json: Any = _ABSENT, text: str | None = None) -> Receipt:
        """Send the last chunk of an answer that failed; what it says of the cause is yours to choose."""
        return await self._put(StreamState.ERROR, _last(json, text), None)

    async def _put(
        self, state: StreamState, content: tuple[bytes, ContentType], headers: Mapping[str, str] | None
    ) -> Receipt:
        async with self._turn:
            if self._over:
                raise RuntimeError("the stream is over")
            try:
                if self._answering.cancelled:
                    raise error_from_reason("STREAM_CANCELLED", "the client has cancelled the stream")
                if self._unsettled is not None:
                    await self._settle(self._unsettled)
                chunk = _Chunk(self._next_index, new_message_id(), *content, state, headers or {})
                receipt = await self._settle(chunk)
            except StreamCancelled:
                self._over = True
                self._answering.cancel()
                await self._answering.cancelled_here()
                raise
            self._over = state is not StreamState.OPEN
            return receipt

    async def _settle(self, chunk: _Chunk) -> Receipt:
        """Send the chunk until it is taken or refused; else it is kept, and is the first to be sent again."""
        self._unsettled = chunk
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_s
        back_off = BackOff(BASE_S, CAP_S)
        while True:
            try:
                receipt = await self._send(chunk, max(deadline - loop.time(), 0.001))
            except SidecarError as error:
                wait_s = back_off.next_s(at_least_s=error.retry_after_s or 0.0)
                if _is_passing(error) and loop.time() + wait_s < deadline:
                    await asyncio.sleep(wait_s)
                    continue
                if error.definite or isinstance(error, ManagerGone):
                    self._unsettled = None
                raise
            self._unsettled = None
            self._next_index = chunk.position + 1
            return receipt

    async def _send(self, chunk: _Chunk, timeout_s: float) -> Receipt:
        return await self._context.send(
            chunk.payload,
            content_type=chunk.content_type,
            message_id=chunk.message_id,
            event_type=self._event_type,
            reply_to=self._reply_to,
            headers=chunk.headers,
            stream=StreamPlace(self.id, chunk.position, chunk.state),
            timeout_s=timeout_s,
        )


def _is_passing(error: SidecarError) -> bool:
    """Whether the same chunk may be taken later. A full outbox is a client that reads too slowly: the agent waits."""
    if isinstance(error, ResourceExhausted):
        return error.retry_after_s is not None
    return isinstance(error, Unavailable) and not isinstance(error, NoAgent)


def _content(json: Any, text: str | None, binary: bytes | None) -> tuple[bytes, ContentType]:
    if (json is not _ABSENT) + (text is not None) + (binary is not None) != 1:
        raise TypeError("give one of json=, text= and binary=")
    if text is not None:
        return _utf8(text), ContentType.TEXT
    if binary is not None:
        return binary, ContentType.BINARY
    return encode_json(json), ContentType.JSON


def _last(json: Any, text: str | None) -> tuple[bytes, ContentType]:
    return (b"", ContentType.JSON) if json is _ABSENT and text is None else _content(json, text, None)


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:  # a lone surrogate
        raise bad_request("message.payload", "UTF-8") from None
