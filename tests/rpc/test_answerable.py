"""The tokens that an attached worker is given with its events."""

from __future__ import annotations

from sidecar.rpc.answerable import RENEW_AGAIN_S
from tests.rpc.rig import Refused, Rig, ended_with, summary
from tests.rpc.workers import attached, registration, say

AUDIT_UNAVAILABLE = Refused("UNAVAILABLE", "AUDIT_UNAVAILABLE", retry_s=1.0)


async def test_the_events_of_a_context_carry_one_token(rig: Rig) -> None:
    worker = await attached(rig)
    say(rig, rig.alice, "m-1")
    first = (await worker.event()).context_token
    say(rig, rig.alice, "m-2")
    assert (await worker.event()).context_token == first


async def test_a_worker_is_not_given_a_token_again_that_it_has_revoked(rig: Rig) -> None:
    worker = await attached(rig)
    say(rig, rig.alice, "m-1")
    first = (await worker.event()).context_token
    rig.tokens.revoke_family(rig.tokens.verify(first).family)
    say(rig, rig.alice, "m-2")
    second = (await worker.event()).context_token
    assert second != first
    assert rig.tokens.verify(second).isolation_key == rig.alice.key


async def test_a_token_is_used_to_its_end_while_no_other_can_be_recorded(rig: Rig) -> None:
    """What has begun outlives a full disk for that long: one conversation, and the others of its worker."""
    worker = await attached(rig, registration(ack_timeout_s=3_600.0))  # nothing comes twice while the clock is moved
    people = rig.alice, rig.carol
    for person in people:
        say(rig, person, "m-1")
    first = await worker.events(2)
    ttl_s = rig.tokens.ttl_s
    rig.disk.full = True
    rig.tick(ttl_s / 2)
    for person in people:
        say(rig, person, "m-2")
    assert [one.context_token for one in await worker.events(2)] == [one.context_token for one in first]

    rig.disk.full = False
    rig.tick(RENEW_AGAIN_S)
    rig.audit.tick()
    await rig.records()
    say(rig, rig.alice, "m-3")
    token = (await worker.event()).context_token
    assert rig.tokens.verify(token).expires_at >= rig.tokens.verify(first[0].context_token).expires_at + ttl_s / 2

    rig.disk.full = True
    rig.tick(ttl_s)
    say(rig, rig.alice, "m-4")
    assert summary(await ended_with(worker.call)) == AUDIT_UNAVAILABLE


async def test_a_token_that_was_revoked_is_not_used_on_for_want_of_another(rig: Rig) -> None:
    worker = await attached(rig)
    say(rig, rig.alice, "m-1")
    token = (await worker.event()).context_token
    rig.disk.full = True
    rig.tokens.revoke_family(rig.tokens.verify(token).family)
    say(rig, rig.alice, "m-2")
    assert summary(await ended_with(worker.call)) == AUDIT_UNAVAILABLE
