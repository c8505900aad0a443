"""What the tests ask of a WebSocket client of somebody else's, whichever it is."""

from __future__ import annotations

import asyncio
import base64
from abc import ABC, abstractmethod
from typing import Any, ClassVar

TIMEOUT_S = 20.0


class Refused(Exception):
    """The handshake was answered with this status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Closed(Exception):
    """The connection was closed with this code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Client(ABC):
    """One connection. What happens to it comes as events: `opened`, `refused`, `text`, `binary`, `closed`."""

    sets_headers: ClassVar[bool]
    """It can send headers of its own, and shows those of the answer; a browser's can do neither."""
    protocol = ""
    connection_id = ""

    def __init__(self) -> None:
        self._events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def connect(self, url: str, protocols: list[str], token: str = "") -> None:
        """Connect, with a user token in a header or as a subprotocol. Raises Refused."""
        headers = {}
        if token and self.sets_headers:
            headers["Authorization"] = f"Bearer {token}"
        elif token:
            protocols = [*protocols, f"bearer.{token}"]
        await self.dial(url, protocols, headers)
        event = await self._event()
        if "refused" in event:
            raise Refused(event["refused"])
        self.protocol, self.connection_id = event["opened"] or "", event["connection_id"]

    async def receive(self) -> str | bytes:
        """The next message. Raises Closed."""
        event = await self._event()
        if "closed" in event:
            raise Closed(event["closed"])
        return base64.b64decode(event["binary"]) if "binary" in event else str(event["text"])

    async def _event(self) -> dict[str, Any]:
        async with asyncio.timeout(TIMEOUT_S):
            return await self._events.get()

    def tell(self, event: dict[str, Any]) -> None:
        """Something happened to it."""
        self._events.put_nowait(event)

    @abstractmethod
    async def dial(self, url: str, protocols: list[str], headers: dict[str, str]) -> None:
        """Begin to connect."""

    @abstractmethod
    async def send(self, message: str | bytes) -> None:
        """Text or binary."""

    @abstractmethod
    async def close(self, code: int = 1000) -> None:
        """Close the connection with that code."""

    @abstractmethod
    async def lose(self) -> None:
        """Lose the connection, without a code that ends anything."""

    @abstractmethod
    async def stop(self) -> None:
        """Leave nothing behind. Idempotent."""
