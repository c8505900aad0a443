"""Python's websocket-client, which blocks, in threads."""

from __future__ import annotations

import asyncio
import base64
import struct
from typing import Any

import websocket

from tests.clients.third_party.clients import TIMEOUT_S, Client


class PythonClient(Client):
    """A connection reads in a thread of its own."""

    sets_headers = True

    def __init__(self) -> None:
        super().__init__()
        self._socket: Any = None
        self._reading: asyncio.Task[None] | None = None

    async def dial(self, url: str, protocols: list[str], headers: dict[str, str]) -> None:
        try:
            self._socket = await asyncio.to_thread(
                websocket.create_connection,
                url,
                timeout=TIMEOUT_S,
                header=headers,
                subprotocols=protocols or None,
                suppress_origin=True,
            )
        except websocket.WebSocketBadStatusException as refused:
            self.tell({"refused": refused.status_code})
            return
        answered = self._socket.getheaders().get("sidecar-connection-id", "")
        self.tell({"opened": self._socket.getsubprotocol(), "connection_id": answered})
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        while True:
            try:
                opcode, data = await asyncio.to_thread(self._socket.recv_data, control_frame=True)
            except (websocket.WebSocketException, OSError):
                self.tell({"closed": 1006})
                return
            if opcode == websocket.ABNF.OPCODE_TEXT:
                self.tell({"text": data.decode()})
            elif opcode == websocket.ABNF.OPCODE_BINARY:
                self.tell({"binary": base64.b64encode(data).decode()})
            elif opcode == websocket.ABNF.OPCODE_CLOSE:
                self.tell({"closed": struct.unpack("!H", data[:2])[0]})
                return

    async def send(self, message: str | bytes) -> None:
        binary = isinstance(message, bytes)
        opcode = websocket.ABNF.OPCODE_BINARY if binary else websocket.ABNF.OPCODE_TEXT
        await asyncio.to_thread(self._socket.send, message, opcode)

    async def close(self, code: int = 1000) -> None:
        await asyncio.to_thread(self._socket.send_close, code)

    async def lose(self) -> None:
        await asyncio.to_thread(self._socket.sock.shutdown, 2)

    async def stop(self) -> None:
        if self._socket is not None:
            if self._socket.sock is not None:
                await asyncio.to_thread(self._socket.shutdown)
            if self._reading is not None:
                await self._reading
