"""Everything that is done to one company during a soak: load, faults on every connection, and the end of its process.

All of it is drawn from the Random that is handed in, and all of it stops when `over` is set.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from itertools import islice
from random import Random
from typing import Any

from tests.faults.company import Company
from tests.faults.devices import Receiver
from tests.faults.history import Attempt
from tests.faults.senders import Sender
from tests.faults.soak.crew import Crew
from tests.faults.soak.talk import Talk, breaches, lost
from tests.faults.soak.talker import Talker
from tests.support.fault_proxy import Admission, FaultProxy

PEOPLE = [
    *[("acme", "alice"), ("acme", "alice"), ("acme", "bob"), ("acme", "carol")],
    *[("other", "alice"), ("other", "dave"), ("other", "dave"), ("acme", "erin")],
]
"""Two screens of one user, and one user id in two tenants, are among them."""
READERS = [("acme", "bob"), ("other", "frank")]
"""They use the product's own client."""
TALKERS = [("acme", "alice"), ("acme", "bob"), ("other", "alice"), ("other", "gina")]
"""They talk to agents, and are told of nothing else."""
WORKERS = 3
LIMITS = {
    "SIDECAR_OUTBOX__MAX_MESSAGES": "400",
    "SIDECAR_OUTBOX__RESUME_WINDOW_S": "45",
    "SIDECAR_LIMITS__SLOW_CONSUMER_TIMEOUT_S": "3",
    "SIDECAR_LIMITS__HEALTH_CHECK_INTERVAL_S": "2",
    "SIDECAR_LIMITS__PONG_TIMEOUT_S": "4",
    "SIDECAR_LIMITS__HELLO_TIMEOUT_S": "3",
    "SIDECAR_STREAMS__IDLE_TIMEOUT_S": "5",
    "SIDECAR_DRAIN__WINDOW_S": "1",
    "SIDECAR_DRAIN__GRACE_S": "10",
}
"""So that full outboxes, slow consumers, silent answers and drains come about within seconds; and a context of which no
client knows, for its welcome was lost, has ended when it is looked at what is left."""
ANSWERED_S = 60.0
"""How long the answers to all that was said may take, once every fault is off."""


class Storm:
    """One company's. `seen` counts what befell it."""

    def __init__(self, company: Company, random: Random) -> None:
        self.company = company
        self.over = asyncio.Event()
        self.seen: Counter[str] = Counter()
        self._random = random
        self._devices: list[Receiver] = []
        self.talkers: list[Talker] = []
        self._owed: list[str] = []
        sidecar = company.sidecar
        self.crew = Crew(sidecar.folder / "journal.jsonl", company.grpc.target, sidecar.running.service_token, random)

    async def rage(self) -> None:
        """Until it is over; then every fault is off, the sidecar serves, and everything asked for is answered."""
        self._devices = [self.company.device(person, ready=self._worth_a_try) for person in PEOPLE]
        self._devices += [self.company.library_device(person) for person in READERS]
        await asyncio.gather(*(device.welcomed() for device in self._devices))
        await asyncio.gather(*(self.crew.hire() for _ in range(WORKERS)))
        self.talkers = [self.company.talker(person, ready=self._worth_a_try) for person in TALKERS]
        await asyncio.gather(*(talker.welcomed() for talker in self.talkers))
        work = [asyncio.create_task(send) for send in self._work()]
        faults = [asyncio.create_task(each) for each in (self._strike(), self._doom(), self._doom_agents())]
        try:
            await self._unless_one_fails([*work, *faults])
            self._calm()
            await asyncio.gather(*faults)
            self._calm()
            await asyncio.gather(*work)
        finally:
            for task in (*work, *faults):
                task.cancel()
            await asyncio.gather(*work, *faults, return_exceptions=True)

    async def fall_silent(self) -> None:
        """Nobody says anything more to an agent, and what was said is answered; what is not is a breach."""
        with suppress(TimeoutError):
            async with asyncio.timeout(ANSWERED_S):
                await asyncio.gather(*(talker.fall_silent() for talker in self.talkers))
                while lost(self._talks, self.crew.handlings()):
                    await self.crew.a_while()
        self._owed = lost(self._talks, self.crew.handlings())
        self._owed += [line for talker in self.talkers for line in talker.owed]

    async def part(self) -> None:
        """Those who talk go, and the agents with them."""
        await asyncio.gather(*(talker.leave() for talker in self.talkers))
        await self.crew.dismiss()

    async def close(self) -> None:
        """Leave no task and no process behind. Idempotent."""
        await asyncio.gather(*(talker.stop() for talker in self.talkers))
        await self.crew.dismiss()

    @property
    def _talks(self) -> list[Talk]:
        return [talk for talker in self.talkers for talk in talker.talks]

    def verdict(self) -> list[str]:
        """Every breach of what holds between users and agents, in a line each."""
        return [*breaches(self._talks, self.crew.handlings(), self.crew.answers()), *self._owed]

    def talked(self) -> Counter[str]:
        """What was said and what became of it, for the table."""
        accepted = [one for talk in self._talks for one in talk.accepted]
        handlings = self.crew.handlings()
        return Counter(
            said=len(accepted),
            handled=len({(one.context, one.id) for one in handlings}),
            again=sum(one.redelivered for one in handlings),
            answered=sum(one.over for one in accepted),
            cancelled=sum(one.cancelled for one in accepted),
        )

    async def _unless_one_fails(self, tasks: list[asyncio.Task[None]]) -> None:
        over = asyncio.create_task(self.over.wait())
        done, _ = await asyncio.wait((over, *tasks), return_when=asyncio.FIRST_COMPLETED)
        over.cancel()
        for task in done - {over}:
            task.result()

    async def pause(self, least_s: float, most_s: float) -> None:
        """Some time, less when it is over meanwhile."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._random.uniform(least_s, most_s)):
                await self.over.wait()

    async def _worth_a_try(self) -> None:
        await self.company.serving()
        await self.pause(0.0, 0.2)
        await asyncio.sleep(0)

    # Load

    def _work(self) -> list[Coroutine[Any, Any, None]]:
        unary, nameless, batches, stream, other, again = (
            self.company.sender(ready=self._worth_a_try, wait_s=wait_s) for wait_s in (0.0, 0.0, 0.0, 0.0, 0.0, 0.5)
        )
        return [
            self._keep_sending(unary, unary.unary, 10, named=True),
            self._keep_sending(nameless, nameless.unary, 10, named=False),
            self._keep_sending(batches, batches.batch, 30, named=True),
            self._keep_sending(stream, stream.deliver, 60, named=True),
            self._keep_sending(other, other.deliver, 30, named=False),
            self._keep_sending(again, again.unary, 3, named=True),
            self._keep_repeating(again),
        ]

    async def _keep_repeating(self, sender: Sender) -> None:
        """Ask again, twice at once, for what was asked for before; and for what nobody has asked for yet."""
        while not self.over.is_set():
            await self.pause(0.05, 0.3)
            await self._worth_a_try()
            latest = islice(reversed(self.company.history.attempts.values()), 400)
            known = [attempt for attempt in latest if attempt.message_id and attempt.receipts]
            new = self._some_message(sender, named=True)
            await asyncio.gather(*(sender.ask(self._random.choice([*known, new])) for _ in range(2)), sender.ask(new))

    async def _keep_sending(
        self, sender: Sender, way: Callable[[list[Attempt]], Awaitable[None]], most: int, *, named: bool
    ) -> None:
        while not self.over.is_set():
            count = self._random.randrange(1, most)
            await way([self._some_message(sender, named=named) for _ in range(count)])
            await self.pause(0.0, 0.4)

    def _some_message(self, sender: Sender, *, named: bool) -> Attempt:
        random = self._random
        device = random.choice(self._devices)
        critical = named and random.random() < 0.05
        ttl_s = random.uniform(0.05, 3.0) if not critical and random.random() < 0.1 else None
        filler = "x" * random.choice((0, 0, 0, 100, 1_000, 10_000))
        return sender.attempt(device, named=named, critical=critical, ttl_s=ttl_s, filler=filler)

    # Faults

    async def _strike(self) -> None:
        """On one connection after another; now and then on all, or on those to come."""
        while not self.over.is_set():
            await self.pause(0.1, 0.8)
            proxy = self._random.choice((self.company.websocket, self.company.websocket, self.company.grpc))
            await self._random.choice((self._at_one, self._at_one, self._at_one, self._at_all, self._at_none_to_come))(
                proxy
            )

    async def _at_one(self, proxy: FaultProxy) -> None:
        self.seen[proxy.strike(self._random) or "no connection"] += 1

    async def _at_all(self, proxy: FaultProxy) -> None:
        name, act = self._random.choice(
            (("all cut", proxy.cut_all), ("all reset", proxy.reset_all), ("all calm", proxy.calm))
        )
        self.seen[name] += 1
        act()

    async def _at_none_to_come(self, proxy: FaultProxy) -> None:
        proxy.admission = self._random.choice((Admission.BLACKHOLE, Admission.RESET))
        self.seen[proxy.admission.value] += 1
        await self.pause(0.1, 1.5)
        proxy.admission = Admission.FORWARD

    def _calm(self) -> None:
        self.company.websocket.calm()
        self.company.grpc.calm()

    async def _doom(self) -> None:
        """The end of the process, in one way or another, and a new one after a while; or only its sleep."""
        while not self.over.is_set():
            await self.pause(4.0, 10.0)
            if self.over.is_set():
                return
            name, end = self._random.choice(
                (
                    ("kill -9", self.company.kill),
                    ("kill -9", self.company.kill),
                    ("SIGTERM", self._drain),
                    ("kill -9 while it drains", self._kill_while_it_drains),
                    ("SIGSTOP", self._freeze),
                )
            )
            self.seen[name] += 1
            await end()
            if not self.company.sidecar.serving.is_set():
                await self.pause(0.0, 1.0)
                await self.company.sidecar.start()

    async def _doom_agents(self) -> None:
        """The end of one worker, with whatever it has in hand; after a while there is another. Once at least."""
        await self.pause(1.0, 3.0)
        while True:
            self.seen["kill -9 of an agent"] += 1
            await self.crew.kill_one()
            await self.pause(0.0, 1.0)
            await self.crew.hire()
            await self.pause(3.0, 9.0)
            if self.over.is_set():
                return

    async def _drain(self) -> None:
        code = await self.company.terminate()
        assert code == 0, f"the sidecar ended with {code} on SIGTERM"

    async def _kill_while_it_drains(self) -> None:
        draining = asyncio.create_task(self.company.terminate())
        await self.pause(0.0, 1.0)
        await self.company.kill()
        await draining

    async def _freeze(self) -> None:
        await self.company.sidecar.freeze()
        try:
            await self.pause(0.5, 5.0)
        finally:
            self.company.sidecar.thaw()
