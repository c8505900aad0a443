"""Frames of several events: what goes in one, what does not, and that each event in it is one by itself."""

from __future__ import annotations

import asyncio

import pytest

from sidecar.core.ports import AuditEvent
from sidecar.rpc.attach import MAX_FRAME_BYTES, MAX_FRAME_EVENTS, MAX_MINTED_AT_ONCE
from tests.rpc.rig import Client, Rig, ended_with, summary
from tests.rpc.workers import Worker, announce, attached, registration, say, summaries

MANY = 1_000


async def known(rig: Rig, worker: Worker, *clients: Client) -> None:
    """The worker has a token for each of them, so that no event of theirs waits for a record."""
    for client in clients:
        announce(rig, client)
        await worker.acknowledge(await worker.event("opened"))


async def test_a_worker_that_did_not_ask_for_it_is_told_one_at_a_time(rig: Rig) -> None:
    worker = await attached(rig)
    await known(rig, worker, rig.alice)
    for number in range(5):
        say(rig, rig.alice, f"m-{number}")
    assert [each.message.message_id for each in await worker.events(5)] == [f"m-{number}" for number in range(5)]


async def test_what_has_gathered_comes_in_one_frame_each_event_with_what_is_its_own(rig: Rig) -> None:
    worker = await attached(rig, registration(max_frame_events=MANY))
    await known(rig, worker, rig.alice, rig.carol)
    say(rig, rig.alice, "m-1")
    say(rig, rig.carol, "m-1")
    say(rig, rig.alice, "m-2")
    events = await worker.frame_of("events")
    assert sorted(summaries(events)) == ["alice m-1", "alice m-2", "carol m-1"]
    assert [each for each in summaries(events) if each.startswith("alice")] == ["alice m-1", "alice m-2"]
    assert len({each.delivery_id for each in events}) == 3
    for each in events:
        owner = rig.alice if each.context.user_id == "alice" else rig.carol
        assert each.isolation_key == owner.key
        assert rig.tokens.verify(each.context_token).isolation_key == owner.key
    say(rig, rig.alice, "m-3")
    assert summaries(await worker.frame_of("event")) == ["alice m-3"]


@pytest.mark.parametrize(
    ("asked", "sizes"),
    [(2, [2, 2, 1]), (3, [3, 2]), (1, [1] * 5), (5, [5])],
)
async def test_no_more_than_the_worker_takes(rig: Rig, asked: int, sizes: list[int]) -> None:
    worker = await attached(rig, registration(max_frame_events=asked))
    await known(rig, worker, rig.alice)
    for number in range(5):
        say(rig, rig.alice, f"m-{number}")
    frames = [await worker.frame_of("event" if size == 1 else "events") for size in sizes]
    assert [len(frame) for frame in frames] == sizes
    assert [each.message.message_id for frame in frames for each in frame] == [f"m-{number}" for number in range(5)]


@pytest.mark.parametrize("asked", [MAX_FRAME_EVENTS, MAX_FRAME_EVENTS + 1, 2**32 - 1])
async def test_no_more_than_the_sidecar_puts_in_one(rig: Rig, asked: int) -> None:
    worker = await attached(rig, registration(max_frame_events=asked))
    await known(rig, worker, rig.alice, rig.carol)
    for number in range(60):
        say(rig, rig.alice, f"m-{number}")
        say(rig, rig.carol, f"m-{number}")
    assert len(await worker.frame_of("events")) == MAX_FRAME_EVENTS
    assert len(await worker.frame_of("events")) == 120 - MAX_FRAME_EVENTS


async def test_a_frame_of_several_is_bounded_in_bytes_and_one_that_is_larger_comes_alone(rig: Rig) -> None:
    worker = await attached(rig, registration(max_frame_events=MANY))
    await known(rig, worker, rig.alice)
    for number, length in enumerate((60_000, 60_000, 60_000, 60_000, 60_000, MAX_FRAME_BYTES + 1, 9, 9)):
        assert say(rig, rig.alice, f"m-{number}", payload=b'"%s"' % (b"x" * length)) is None
    frames = [await worker.frame_of(kind) for kind in ("events", "event", "event", "events")]
    assert [[each.message.message_id for each in frame] for frame in frames] == [
        ["m-0", "m-1", "m-2", "m-3"],
        ["m-4"],
        ["m-5"],
        ["m-6", "m-7"],
    ]


async def test_each_event_of_a_frame_uses_a_credit_and_a_cancel_none(rig: Rig) -> None:
    worker = await attached(rig, registration(credits_=3, max_frame_events=MANY))
    await known(rig, worker, rig.alice)
    for number in range(5):
        say(rig, rig.alice, f"m-{number}")
    rig.alice.manager.cancel("s-1", None, rig.at())
    assert summaries(await worker.frame_of("events")) == ["alice cancelled", "alice m-0", "alice m-1"]
    await worker.credit(MANY)
    assert summaries(await worker.frame_of("events")) == ["alice m-2", "alice m-3", "alice m-4"]


async def test_those_of_a_frame_that_are_not_acknowledged_come_again_marked(rig: Rig) -> None:
    worker = await attached(rig, registration(credits_=5, ack_timeout_s=30.0, max_frame_events=MANY))
    await known(rig, worker, rig.alice)
    for number in range(4):
        say(rig, rig.alice, f"m-{number}")
    events = await worker.frame_of("events")
    await worker.acknowledge(events[0], events[2])
    await worker.credit(1)
    say(rig, rig.alice, "m-4")
    events += await worker.frame_of("event")  # so the acknowledgement was read, which came before the credit
    rig.tick(30.0)
    await worker.credit(MANY)
    again = await worker.frame_of("events")
    assert summaries(again) == ["*alice m-1", "*alice m-3", "*alice m-4"]
    assert [each.delivery_id for each in again] == [events[place].delivery_id for place in (1, 3, 4)]


async def test_a_worker_that_is_lost_leaves_a_whole_frame_to_another(rig: Rig) -> None:
    first = await attached(rig, registration(max_frame_events=MANY))
    await known(rig, first, rig.alice)
    for number in range(3):
        say(rig, rig.alice, f"m-{number}")
    await first.frame_of("events")
    second = await attached(rig)
    first.call.cancel()
    assert summaries(await second.events(3)) == ["*alice m-0", "*alice m-1", "*alice m-2"]


async def test_what_is_ready_does_not_wait_for_another_contexts_token(rig: Rig) -> None:
    worker = await attached(rig, registration(max_frame_events=MANY))
    await known(rig, worker, rig.alice)
    before = len(await rig.records(AuditEvent.TOKEN_MINTED))
    rig.disk.hold()
    say(rig, rig.alice, "m-1")
    say(rig, rig.alice, "m-2")
    say(rig, rig.carol, "m-1")
    # Alice's context had a turn, then Carol's whose token is yet to be recorded.
    assert summaries(await worker.frame_of("event")) == ["alice m-1"]
    rig.disk.release()
    assert summaries(await worker.frame_of("events")) == ["carol m-1", "alice m-2"]
    assert [record["user_id"] for record in (await rig.records(AuditEvent.TOKEN_MINTED))[before:]] == ["carol"]


async def test_a_cancel_waits_for_nobody_elses_token(rig: Rig) -> None:
    worker = await attached(rig)
    await known(rig, worker, rig.alice)
    rig.disk.hold()
    announce(rig, rig.carol)
    await rig.disk.asked()
    rig.carol.manager.cancel("s-2", None, rig.at())  # one that needs a token itself
    rig.alice.manager.cancel("s-1", None, rig.at())
    assert summaries([await worker.event()]) == ["alice cancelled"]
    rig.disk.release()
    assert sorted(summaries(await worker.events(2))) == ["carol cancelled", "carol opened"]


async def test_what_had_to_wait_for_a_token_and_got_none_was_not_sent(rig: Rig) -> None:
    first = await attached(rig, registration(max_frame_events=MANY))
    await known(rig, first, rig.alice)
    rig.disk.full = True
    say(rig, rig.alice, "m-1")
    announce(rig, rig.carol)
    assert summaries(await first.frame_of("event")) == ["alice m-1"]
    assert summary(await ended_with(first.call)).reason == "AUDIT_UNAVAILABLE"
    rig.disk.full = False
    second = await attached(rig, registration(max_frame_events=MANY))
    assert sorted(summaries(await second.frame_of("events"))) == ["*alice m-1", "carol opened"]


async def test_what_went_to_another_worker_while_it_waited_is_not_sent_here_as_well(rig: Rig) -> None:
    """Neither worker was sent it before, so that neither copy would be marked."""
    workers = [await attached(rig, registration(ack_timeout_s=1.0)) for _ in range(2)]
    rig.disk.hold()
    announce(rig, rig.carol)
    await rig.disk.asked()
    attached_now = rig.factory.agents._services["support"].workers.values()
    (former,) = [each for each in attached_now if each.queues]
    rig.tick(1.0)
    (holder,) = [each for each in attached_now if each.queues]
    assert holder is not former
    rig.disk.release()
    reading = [asyncio.create_task(worker.event()) for worker in workers]
    (told,), (silent,) = await asyncio.wait(reading, return_when=asyncio.FIRST_COMPLETED)
    assert summaries([told.result()]) == ["carol opened"]
    assert former.credits == holder.credits + 1
    await workers[reading.index(silent)].call.done_writing()
    with pytest.raises(AssertionError):  # its stream ends, and nothing came before
        await silent


async def test_contexts_that_are_told_of_together_have_their_tokens_by_one_record_each_and_one_wait(rig: Rig) -> None:
    worker = await attached(rig, registration(max_frame_events=MANY))
    before = len(await rig.records(AuditEvent.TOKEN_MINTED))
    people = [rig.alice, rig.carol, *(rig.connect(f"user-{number}") for number in range(MAX_MINTED_AT_ONCE))]
    announce(rig, *people)
    events = [*await worker.frame_of("events"), *await worker.frame_of("events")]
    assert [each.isolation_key for each in events] == [each.key for each in people]
    assert all(rig.tokens.verify(each.context_token).isolation_key == each.isolation_key for each in events)
    records = (await rig.records(AuditEvent.TOKEN_MINTED))[before:]
    assert [record["token_id"] for record in records] == [
        rig.tokens.verify(each.context_token).token_id for each in events
    ]
    assert [record["user_id"] for record in records] == [each.context.user_id for each in events]


async def test_a_context_that_is_over_has_no_token_minted_for_what_is_not_said(rig: Rig) -> None:
    first = await attached(rig, registration(max_frame_events=MANY))
    announce(rig, rig.alice, rig.carol)
    alice, carol = await first.frame_of("events")
    await first.acknowledge(carol)
    await first.finish()
    rig.carol.manager.end("revoked", None, rig.at())
    before = len(await rig.records(AuditEvent.TOKEN_MINTED))
    second = await attached(rig, registration(max_frame_events=MANY))
    assert summaries(again := await second.frame_of("events")) == ["*alice opened", "carol closed"]
    assert again[0].delivery_id == alice.delivery_id
    assert [record["user_id"] for record in (await rig.records(AuditEvent.TOKEN_MINTED))[before:]] == ["alice"]


async def test_the_end_of_a_context_comes_behind_its_messages_and_without_a_token(rig: Rig) -> None:
    worker = await attached(rig, registration(max_frame_events=MANY))
    await known(rig, worker, rig.alice)
    say(rig, rig.alice, "m-1")
    rig.alice.manager.end("revoked", None, rig.at())
    events = await worker.frame_of("events")
    assert summaries(events) == ["alice m-1", "alice closed"]
    assert [bool(each.context_token) for each in events] == [True, False]
