"""The response streams of one manager: which chunk comes next, what was cancelled, what has been silent for too long.

A stream's chunks go by (stream_id, index): only the next is taken, a lower one is a repeat. Every step is synchronous.
"""

from __future__ import annotations

from collections import OrderedDict
from math import inf
from typing import TYPE_CHECKING, Final, NamedTuple

from sidecar.core.errors import ErrorReason, FailedPrecondition, ResourceExhausted
from sidecar.core.message import Instant, StreamPlace, StreamState
from sidecar.core.stored import StoredStream

if TYPE_CHECKING:
    from sidecar.core.message import Message, PendingReceipt

MAX_OPEN: Final = 256
MAX_REMEMBERED: Final = 256
"""Streams that are over, streams and messages that were cancelled: so many each, the latest."""
MAX_STORED_ENDED: Final = 64
"""How many of the streams that are over a store keeps: it writes them anew whenever the context's state changes."""
MAX_CHUNKS: Final = 1_024
"""How many of an open stream's last chunks a repeat finds its receipt of."""
MAX_ENDED_CHUNKS: Final = 64
"""The same of one that is over."""


_OPEN: Final = StreamState.OPEN  # reading a member of an enumeration costs more than a call


class Chunk(NamedTuple):
    """A chunk that was taken; `pending` while the store has yet to confirm it, sequence 0 where it is forgotten."""

    sequence: int
    accepted: Instant
    pending: PendingReceipt | None


_FORGOTTEN: Final = Chunk(0, Instant(0.0, 0.0), None)
_Kept = tuple[int, float, float]
"""The same once it is confirmed: a plain tuple of numbers, which the cyclic collector need not look at again."""


def _kept(chunk: Chunk) -> _Kept:
    return chunk.sequence, chunk.accepted.monotonic, chunk.accepted.unix


def _as_chunk(chunk: Chunk | _Kept) -> Chunk:
    return chunk if isinstance(chunk, Chunk) else Chunk(chunk[0], Instant(chunk[1], chunk[2]), None)


class _Stream:
    __slots__ = (
        "cancelled",
        "chunks",
        "event_type",
        "next_index",
        "over",
        "reply_to",
        "silenced",
        "silent_since",
        "stream_id",
    )

    def __init__(self, stream_id: str, reply_to: str, event_type: str, now: float) -> None:
        self.stream_id = stream_id
        self.reply_to = reply_to
        self.event_type = event_type
        self.next_index = 0
        self.over = False
        self.cancelled = False
        self.silenced = False
        self.silent_since = now
        # A list, for most streams are short: an empty deque takes up eight times as much.
        self.chunks: list[Chunk | _Kept] = []


class SilentStream(NamedTuple):
    """A stream that is ended for its silence: what the message that says so carries."""

    place: StreamPlace
    reply_to: str
    event_type: str


class ResponseStreams:
    """See the module. Times are monotonic seconds."""

    __slots__ = ("_cancelled_messages", "_cancelled_streams", "_ended", "_open")

    def __init__(self) -> None:
        self._open: dict[str, _Stream] = {}
        self._ended: OrderedDict[str, _Stream] = OrderedDict()
        self._cancelled_streams: OrderedDict[str, None] = OrderedDict()
        self._cancelled_messages: OrderedDict[str, None] = OrderedDict()

    @property
    def any_open(self) -> bool:
        """True while a stream is open: its context is not idle."""
        return bool(self._open)

    def goes_on(self, place: StreamPlace, message: Message) -> bool:
        """Whether that is a chunk of an open stream, whose chunks before it had the same event_type and reply_to."""
        stream = self._open.get(place.stream_id)
        return stream is not None and stream.event_type == message.event_type and stream.reply_to == message.reply_to

    def admit(self, place: StreamPlace, reply_to: str) -> Chunk | None:
        """None when that chunk is the next; the chunk as it was taken when it is a repeat, and nothing is to be done.

        Raises STREAM_CANCELLED, STREAM_ENDED, STREAM_OUT_OF_ORDER, or USER_LIMIT for one open stream too many.
        """
        stream = self._find(place.stream_id)
        if stream is None:
            self._admit_first(place, reply_to)
            return None
        if reply_to and not stream.reply_to and not stream.over and reply_to in self._cancelled_messages:
            self._cancel(stream)
        if stream.cancelled:
            raise FailedPrecondition(ErrorReason.STREAM_CANCELLED)
        if place.position < stream.next_index - stream.silenced:
            known = place.position - stream.next_index + len(stream.chunks)
            return _as_chunk(stream.chunks[known]) if known >= 0 else _FORGOTTEN
        if stream.over:
            raise FailedPrecondition(ErrorReason.STREAM_ENDED)
        if place.position > stream.next_index:
            raise FailedPrecondition(ErrorReason.STREAM_OUT_OF_ORDER)
        return None

    def taken(self, place: StreamPlace, reply_to: str, event_type: str, chunk: Chunk) -> None:
        """The next chunk has been appended."""
        now = chunk.accepted.monotonic
        stream = self._open.get(place.stream_id)
        if stream is None:
            stream = self._open[place.stream_id] = _Stream(place.stream_id, reply_to, event_type, now)
        # A store keeps neither with each chunk: of a stream that was restored they may not be known.
        if not stream.reply_to:
            stream.reply_to = reply_to
        if not stream.event_type:
            stream.event_type = event_type
        stream.next_index = place.position + 1
        stream.silent_since = now
        stream.chunks.append(chunk if chunk.pending is not None else _kept(chunk))
        if len(stream.chunks) > MAX_CHUNKS:
            del stream.chunks[0]
        if place.state is not _OPEN:
            self._close(stream)

    def confirmed(self, place: StreamPlace) -> None:
        """The store has that chunk: a repeat need not wait any more."""
        stream = self._find(place.stream_id)
        if stream is not None:
            known = place.position - stream.next_index + len(stream.chunks)
            if 0 <= known < len(stream.chunks):
                stream.chunks[known] = _kept(_as_chunk(stream.chunks[known]))

    def fall_back(self, place: StreamPlace) -> None:
        """The append of that chunk failed, and of every later one: its place is the next again."""
        stream = self._find(place.stream_id)
        if stream is None or stream.next_index <= place.position:
            return
        while stream.chunks and stream.next_index > place.position:
            stream.chunks.pop()
            stream.next_index -= 1
        stream.next_index = place.position
        stream.silenced = False
        if stream.over and not stream.cancelled:
            stream.over = False
            self._ended.pop(stream.stream_id, None)
            self._open[stream.stream_id] = stream
        if not place.position and not stream.cancelled:
            self._open.pop(stream.stream_id, None)  # it was never begun

    def cancel(self, stream_id: str | None, message_id: str | None) -> list[tuple[str, str]]:
        """The client wants no more of a stream, or of the answer to its message, even before the first chunk.

        Returns what senders are to be told: (stream_id, reply_to), "" for what is not known. Nothing for a repeat, nor
        for a stream that is over.
        """
        told: list[tuple[str, str]] = []
        if stream_id is not None and self._remember(self._cancelled_streams, stream_id):
            stream = self._find(stream_id)
            if stream is None:
                told.append((stream_id, message_id or ""))
            elif not stream.over:
                self._cancel(stream)
                told.append((stream_id, stream.reply_to))
        if message_id is not None and self._remember(self._cancelled_messages, message_id):
            answering = [stream for stream in self._open.values() if stream.reply_to == message_id]
            for stream in answering:
                self._cancel(stream)
                told.append((stream.stream_id, message_id))
            if message_id not in (reply_to for _, reply_to in told):
                told.append(("", message_id))
        return told

    def oldest(self, stream_id: str) -> int:
        """The sequence of the oldest chunk of a stream that is remembered; 0 for none."""
        stream = self._find(stream_id)
        return stream.chunks[0][0] if stream is not None and stream.chunks else 0

    def next_silence(self, timeout_s: float) -> float:
        """When the stream that is silent longest is to be ended; inf for never."""
        return min((stream.silent_since for stream in self._open.values()), default=inf) + timeout_s

    def silent(self, now: float, timeout_s: float) -> list[SilentStream]:
        """The streams whose time is over; each is to be told to the client by a last chunk of state error."""
        return [
            SilentStream(
                StreamPlace(stream.stream_id, stream.next_index, StreamState.ERROR), stream.reply_to, stream.event_type
            )
            for stream in self._open.values()
            if now >= stream.silent_since + timeout_s
        ]

    def silenced(self, stream_id: str) -> None:
        """The last chunk was not its sender's: what that sends in its place was not delivered, and is no repeat."""
        self._ended[stream_id].silenced = True

    def stored(self) -> tuple[StoredStream, ...]:
        """Every stream that is remembered, and what was cancelled before it began."""
        known = (*list(self._ended.values())[-MAX_STORED_ENDED:], *self._open.values())
        streams = [StoredStream(s.stream_id, s.next_index - s.silenced, s.over, s.cancelled, s.reply_to) for s in known]
        named = {stream.stream_id for stream in known}
        streams += [StoredStream(name, 0, True, True, "") for name in self._cancelled_streams if name not in named]
        streams += [StoredStream("", 0, True, True, message_id) for message_id in self._cancelled_messages]
        return tuple(streams)

    def restore(self, kept: tuple[StoredStream, ...], now: float) -> None:
        """Be as a store kept them; their silence begins anew."""
        for each in kept:
            if each.cancelled:
                self._remember(*self._as_cancelled(each))
            if each.next_index:
                stream = _Stream(each.stream_id, each.reply_to, "", now)
                stream.next_index, stream.over, stream.cancelled = each.next_index, each.over, each.cancelled
                if each.over:
                    self._remember_ended(stream)
                else:
                    self._open[each.stream_id] = stream

    def restore_chunk(self, place: StreamPlace, chunk: Chunk) -> None:
        """A chunk that the store kept, in order: its stream is at least as far as that, unless known to be over.

        Those between that are not kept any more have their place, so that each is found by its index.
        """
        stream = self._find(place.stream_id)
        behind = 0 if stream is None else stream.next_index - place.position
        if stream is not None and behind > 0:
            if behind <= MAX_CHUNKS:
                stream.chunks[:0] = [_kept(_FORGOTTEN)] * (behind - len(stream.chunks))
                stream.chunks[-behind] = _kept(chunk)
        elif stream is None or not stream.over:
            if stream is not None:
                stream.chunks += [_kept(_FORGOTTEN)] * min(-behind, MAX_CHUNKS)
                del stream.chunks[:-MAX_CHUNKS]
            self.taken(place, "" if stream is None else stream.reply_to, "", chunk)

    def _as_cancelled(self, each: StoredStream) -> tuple[OrderedDict[str, None], str]:
        if each.stream_id:
            return self._cancelled_streams, each.stream_id
        return self._cancelled_messages, each.reply_to

    def _find(self, stream_id: str) -> _Stream | None:
        return self._open.get(stream_id) or self._ended.get(stream_id)

    def _admit_first(self, place: StreamPlace, reply_to: str) -> None:
        if place.stream_id in self._cancelled_streams or (reply_to and reply_to in self._cancelled_messages):
            raise FailedPrecondition(ErrorReason.STREAM_CANCELLED)
        if place.position:
            raise FailedPrecondition(ErrorReason.STREAM_OUT_OF_ORDER)
        if len(self._open) >= MAX_OPEN:
            raise ResourceExhausted(ErrorReason.USER_LIMIT, retry_after_s=1.0)

    def _cancel(self, stream: _Stream) -> None:
        stream.cancelled = True
        self._close(stream)

    def _close(self, stream: _Stream) -> None:
        stream.over = True
        self._open.pop(stream.stream_id, None)
        del stream.chunks[:-MAX_ENDED_CHUNKS]
        self._remember_ended(stream)

    def _remember_ended(self, stream: _Stream) -> None:
        self._ended[stream.stream_id] = stream
        if len(self._ended) > MAX_REMEMBERED:
            self._ended.popitem(last=False)

    def _remember(self, names: OrderedDict[str, None], name: str) -> bool:
        """False when it is known already."""
        if name in names:
            return False
        names[name] = None
        if len(names) > MAX_REMEMBERED:
            names.popitem(last=False)
        return True
