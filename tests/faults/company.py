"""A sidecar with its devices and services, all of whose doings go into one history, and how that is settled at last."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import grpc

from sidecar.api.v1 import delivery_service_pb2 as pb
from tests.faults.devices import Device, Person, Receiver, Way
from tests.faults.history import DISK, MEMORY, Context, Count, History, Leftover
from tests.faults.invariants import violations
from tests.faults.library import LibraryDevice
from tests.faults.senders import FAST_RECONNECT, Sender
from tests.faults.soak.talker import Talker
from tests.support.fault_proxy import FaultProxy, fault_proxy
from tests.support.restarting import RestartingSidecar, restarting_sidecar

SETTLE_S = 60.0
"""Serving again within so long of a fault's end (invariant 29)."""


class Company:
    """Everybody around one sidecar. `durability` is what its store gives; `patience_s` how long a device waits."""

    def __init__(
        self,
        sidecar: RestartingSidecar,
        proxies: tuple[FaultProxy, FaultProxy],
        durability: str,
        random: Random,
        *,
        patience_s: float = 10.0,
    ) -> None:
        self.history = History()
        self.sidecar = sidecar
        self.websocket, self.grpc = proxies
        self.durability = durability
        self.devices: list[Receiver] = []
        self.senders: list[Sender] = []
        self._random = random
        self._patience_s = patience_s
        self._channels: list[grpc.aio.Channel] = []
        self._before: dict[str, int] = {}

    async def open(self) -> None:
        """Count what there is before anybody comes."""
        self._before = await self._left_over()

    def device(
        self,
        person: Person,
        *,
        direct: bool = False,
        ready: Callable[[], Awaitable[None]] | None = None,
        acknowledges: float = 0.2,
    ) -> Device:
        """A further device, which comes through the proxy, or straight, and whenever the sidecar serves."""
        port = self.sidecar.running.websocket_port if direct else self.websocket.port
        way = self._way(port, ready)
        device = Device(self.history, person, way, Random(self._random.random()), acknowledges=acknowledges)
        self.devices.append(device)
        return device

    def library_device(self, person: Person) -> LibraryDevice:
        """A further device that uses the product's own client, through the proxy."""

        async def outbox_messages(context: Context) -> int:
            return int((await self._stats_of(context)).outbox_messages)

        way = self._way(self.websocket.port, None)
        device = LibraryDevice(self.history, person, way, Random(self._random.random()), outbox_messages)
        self.devices.append(device)
        return device

    def talker(self, person: Person, *, ready: Callable[[], Awaitable[None]] | None = None) -> Talker:
        """A user who talks to agents, through the proxy. Not one of the devices: its talk is not in the history."""
        return Talker(person, self._way(self.websocket.port, ready), Random(self._random.random()))

    def _way(self, port: int, ready: Callable[[], Awaitable[None]] | None) -> Way:
        return Way(
            url=f"ws://127.0.0.1:{port}/v1/connect",
            user_token=lambda whose: self.sidecar.running.user_token(whose[1], whose[0]),
            ready=ready or self.serving,
            durability=self.durability,
            patience_s=self._patience_s,
        )

    def sender(
        self,
        *,
        direct: bool = False,
        ready: Callable[[], Awaitable[None]] | None = None,
        token: Callable[[list[str]], str] = lambda tokens: tokens[-1],
        wait_s: float = 0.0,
    ) -> Sender:
        """A further service, with a channel of its own: through the proxy, or straight."""
        target = self.sidecar.running.grpc_target if direct else self.grpc.target
        channel = grpc.aio.insecure_channel(target, options=FAST_RECONNECT)
        self._channels.append(channel)
        name = f"sender-{len(self.senders) + 1}"
        self.senders.append(Sender(name, self.history, channel, ready or self.serving, token, wait_s=wait_s))
        return self.senders[-1]

    async def serving(self) -> None:
        """Returns while the sidecar serves."""
        await self.sidecar.serving.wait()

    # Faults

    async def kill(self) -> None:
        """kill -9. What was in memory alone has ended with it."""
        self.history.died()
        await self.sidecar.kill()
        self._forgotten("killed")

    def kill_at(self, what: str, times: int) -> asyncio.Event:
        """kill -9 in the very step in which so many more `answers`, `frames` or `welcomes` were seen; set by then."""
        killed = asyncio.Event()

        def kill() -> None:
            self.history.died()
            self.sidecar.strike()
            killed.set()

        self.history.at(what, times, kill)
        return killed

    async def terminate(self) -> int:
        """SIGTERM; the exit code."""
        code = await self.sidecar.terminate()
        self.history.died()
        self._forgotten("sidecar_stopped")
        return code

    def _forgotten(self, reason: str) -> None:
        if self.durability != DISK:
            for context in self.history.contexts.values():
                context.ended = context.ended or reason

    # The end

    async def settle(self) -> None:
        """Everybody is here and has everything that was accepted, acknowledges it, and the outboxes are empty."""
        async with asyncio.timeout(SETTLE_S):
            await asyncio.gather(*(self._settle(device) for device in self.devices))

    async def _settle(self, device: Receiver) -> None:
        while True:
            await device.welcomed()
            context = device.context
            assert context is not None
            accepted = [receipt.sequence for at, _, receipt in self.history.accepted() if at.context is context]
            await device.reached(max(accepted, default=0))
            await device.acknowledge()
            await device.probe()
            if device.context is context:
                break
        stats = await self.stats(device)
        self.history.counts.append(Count(context, stats.messages_sent_total))
        assert stats.outbox_messages == 0, f"{device} has acknowledged all, and {stats.outbox_messages} are kept"

    async def stats(self, device: Receiver) -> Any:
        """The statistics of its present context."""
        assert device.context is not None
        return await self._stats_of(device.context)

    async def _stats_of(self, context: Context) -> Any:
        request = pb.GetManagerStatsRequest(isolation_key=context.isolation_key)
        metadata = (("x-context-token", context.tokens[-1]),)
        async with self.sidecar.running.service() as service:
            return await service.delivery.GetManagerStats(request, metadata=metadata, timeout=10)

    async def part(self) -> None:
        """Everybody goes; nothing of them may be left."""
        await asyncio.gather(*(device.leave() for device in self.devices))
        await self.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_S):
                while await self._left_over() != self._before:
                    pass
        now = await self._left_over()
        self.history.leftovers += [Leftover(what, before, now[what]) for what, before in self._before.items()]

    async def close(self) -> None:
        """Leave no task and no channel behind. Idempotent."""
        await asyncio.gather(*(device.stop() for device in self.devices))
        await asyncio.gather(*(channel.close() for channel in self._channels))
        self._channels.clear()

    async def _left_over(self) -> dict[str, int]:
        running = self.sidecar.running
        async with running.service() as service:
            managers = (await service.factory_stats()).active_managers
            descriptors = len(os.listdir(f"/proc/{running.process.pid}/fd"))
        return {"contexts": managers, "descriptors of the process": descriptors}

    def verdict(self, *, settled: bool = True) -> list[str]:
        """Every breach, in a line each; an error in the log is one."""
        self._read_trail()
        errors = [f"the log has {line}" for line in self.sidecar.log().splitlines() if '"level": "error"' in line]
        return [*map(str, violations(self.history, settled=settled)), *errors]

    def _read_trail(self) -> None:
        """Which contexts have ended, and why. A durable one does not end with its process."""
        for line in self.sidecar.running.audit_path.read_text().splitlines():
            record = json.loads(line)
            stopped = record.get("reason") == "sidecar_stopped" and self.durability == DISK
            if record["event"] == "context_closed" and not stopped:
                self.history.ended(record["connection_id"], record["reason"])


def settings(folder: Path, durability: str, **environment: str) -> dict[str, str]:
    """The environment of a sidecar with that store. Its clients acknowledge more often than people's do."""
    common = {"SIDECAR_WEBSOCKET__FRAMES_PER_SECOND": "100000"}
    if durability == MEMORY:
        return common | environment
    store = {"KIND": "sqlite", "PATH": str(folder / "outboxes.db"), "KEY_FILE": str(folder / "storage.key")}
    return common | {f"SIDECAR_STORAGE__{name}": value for name, value in store.items()} | environment


@asynccontextmanager
async def gathering(
    folder: Path, durability: str, random: Random, *, patience_s: float = 10.0, **environment: str
) -> AsyncIterator[Company]:
    """A company whose sidecar serves; how it ends is the block's own business."""
    async with restarting_sidecar(folder, **settings(folder, durability, **environment)) as sidecar:
        running = sidecar.running
        async with (
            fault_proxy(f"127.0.0.1:{running.websocket_port}") as websocket,
            fault_proxy(running.grpc_target) as services,
        ):
            people = Company(sidecar, (websocket, services), durability, random, patience_s=patience_s)
            try:
                await people.open()
                yield people
            finally:
                await people.close()


@asynccontextmanager
async def company(
    folder: Path, durability: str, random: Random, *, patience_s: float = 10.0, **environment: str
) -> AsyncIterator[Company]:
    """A company whose sidecar serves; in the end it has settled and parted, and no invariant is broken."""
    async with gathering(folder, durability, random, patience_s=patience_s, **environment) as people:
        yield people
        await people.settle()
        await people.part()
    assert people.verdict() == []
