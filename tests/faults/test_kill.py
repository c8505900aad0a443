"""kill -9 in the middle of anything, over the store that survives it: an OK at DISK is kept, once and in order.

Each round kills at an answer, a frame or a welcome that the seed draws, and once more while everybody comes back.
SIDECAR_TEST_EXAMPLES=N runs N times as many seeds.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable
from pathlib import Path
from random import Random

import pytest

from tests.faults.company import Company, company
from tests.faults.devices import Device
from tests.faults.history import DISK, Attempt
from tests.faults.senders import Sender
from tests.support.running import refusal

FACTOR = int(os.environ.get("SIDECAR_TEST_EXAMPLES", "1"))
ROUNDS = 3
PEOPLE = [("acme", "alice"), ("acme", "alice"), ("acme", "bob"), ("other", "alice")]


def oldest(tokens: list[str]) -> str:
    """A token of before any kill must do."""
    return tokens[0]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", range(2 * FACTOR))
async def test_what_was_accepted_survives(seed: int, tmp_path: Path) -> None:
    random = Random(seed)
    async with company(tmp_path, DISK, random) as people:
        devices = [people.device(person) for person in PEOPLE]
        await asyncio.gather(*(device.welcomed() for device in devices))
        services = [people.sender(token=oldest) for _ in range(5)]
        for _ in range(ROUNDS):
            killed = people.kill_at(random.choice(("answers", "frames")), random.randrange(1, 300))
            sending = asyncio.gather(*work(services, devices, random))
            await until_killed(people, killed, sending)
            if random.random() < 0.7:
                again = people.kill_at(*random.choice((("welcomes", 2), ("frames", 20), ("answers", 10))))
                await until_killed(people, again, sending)
            await sending
        await people.settle()
        await ask_again(people, services[0], random)
        recoveries = sum(device.seen["full"] for device in devices)
        assert recoveries >= ROUNDS
        assert sum(device.seen["denied"] for device in devices) == 0
        broken = [
            one for at in people.history.attempts.values() for one in at.tries if not (one.receipt or one.refused)
        ]
        assert broken, "no call was under way when it was killed"


def work(services: list[Sender], devices: list[Device], random: Random) -> list[Awaitable[None]]:
    """Every way of sending at once, to everybody, with message_ids and without."""
    unary, nameless, batches, stream, other = services

    def some(sender: Sender, count: int, *, named: bool) -> list[Attempt]:
        return [
            sender.attempt(random.choice(devices), named=named, critical=named and random.random() < 0.1)
            for _ in range(count)
        ]

    return [
        unary.unary(some(unary, 25, named=True)),
        nameless.unary(some(nameless, 25, named=False)),
        batches.batch(some(batches, 30, named=True) + some(batches, 10, named=False)),
        stream.deliver(some(stream, 150, named=True)),
        other.deliver(some(other, 60, named=False)),
    ]


async def until_killed(people: Company, killed: asyncio.Event, sending: asyncio.Future[list[None]]) -> None:
    """Once it is killed, or all is sent; then it serves again."""
    waiting = asyncio.create_task(killed.wait())
    await asyncio.wait((waiting, sending), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    await people.kill()
    await people.sidecar.start()


async def ask_again(people: Company, sender: Sender, random: Random) -> None:
    """What was accepted, before whichever kill, is known by its message_id still."""
    accepted = [attempt for attempt in people.history.attempts.values() if attempt.message_id and attempt.receipts]
    for attempt in random.sample(accepted, 30):
        receipt = await sender.repeat(attempt)
        assert receipt.duplicate
        assert receipt.state == "ACKNOWLEDGED"


@pytest.mark.parametrize("acknowledged", [False, True])
async def test_what_waits_for_a_client_that_is_away_survives(acknowledged: bool, tmp_path: Path) -> None:
    async with company(tmp_path, DISK, Random(1)) as people:
        alice = people.device(("acme", "alice"), acknowledges=0)
        await alice.welcomed()
        sender = people.sender()
        await sender.unary([sender.attempt(alice, named=True) for _ in range(3)])
        await alice.reached(3)
        if acknowledged:
            await alice.acknowledge()
        await alice.stay_away()
        await sender.deliver([sender.attempt(alice, named=True) for _ in range(20)])
        for end in (people.terminate, people.kill):  # the first writes where everybody stands
            await end()
            await people.sidecar.start()
        await sender.deliver([sender.attempt(alice, named=True) for _ in range(5)])
        alice.come_back()
        await alice.reached(28)
        assert (alice.seen["full"], alice.seen["message"], alice.seen["gap"]) == (1, 28, 0)


async def test_what_expired_is_announced_so_by_the_next_process(tmp_path: Path) -> None:
    """A stop writes where every context stands: with its gaps, which the kill behind it leaves as they are."""
    async with company(tmp_path, DISK, Random(1)) as people:
        alice = people.device(("acme", "alice"), acknowledges=0)
        await alice.welcomed()
        await alice.stay_away()
        sender = people.sender()
        kept = sender.attempt(alice, named=True)
        await sender.unary([sender.attempt(alice, named=False, ttl_s=0.05), kept])
        async with asyncio.timeout(10):
            while (await people.stats(alice)).outbox_messages > 1:
                await sender.repeat(kept)  # which has the sidecar look at the time
        assert await people.terminate() == 0
        await people.sidecar.start()
        await people.kill()
        await people.sidecar.start()
        alice.come_back()
        await alice.reached(2)
        assert [(gap.first, gap.last, gap.reason) for gap in people.history.attaches[-1].gaps] == [(1, 1, "expired")]


async def test_a_context_is_kept_from_its_welcome_on(tmp_path: Path) -> None:
    async with company(tmp_path, DISK, Random(1)) as people:
        killed = people.kill_at("welcomes", 1)
        alice = people.device(("acme", "alice"))
        await killed.wait()
        await people.kill()
        await people.sidecar.start()
        await alice.welcomed(2)
        assert alice.seen["full"] == 1
        sender = people.sender(token=oldest)
        await sender.unary([sender.attempt(alice, named=False)])
        await alice.reached(1)


async def test_a_context_that_has_ended_does_not_come_back(tmp_path: Path) -> None:
    async with company(tmp_path, DISK, Random(1)) as people:
        alice = people.device(("acme", "alice"), acknowledges=0)
        await alice.welcomed()
        sender = people.sender()
        await sender.unary([sender.attempt(alice, named=True)])
        await alice.reached(1)
        await alice.leave()
        people.devices.remove(alice)
        bob = people.device(("acme", "bob"))
        await bob.welcomed()
        await sender.unary([sender.attempt(bob, named=True)])
        await people.kill()
        await people.sidecar.start()
        running, context = people.sidecar.running, alice.context
        assert context is not None
        async with running.service() as service:
            gone = await refusal(service.send(context.isolation_key, context.tokens[0]))
        assert gone.reason == "MANAGER_GONE"
        resume = {"token": alice.resume_token, "last_sequence": 0, "attempt": 1}
        async with running.user("alice", "acme", resume=resume) as again:
            assert again.welcome["recovery"] == "denied"
            assert again.welcome["connection_id"] != context.connection_id
            await again.socket.close()
