"""What hypothesis draws: programs of steps, a step being what is done at once. They shrink to something to be read."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.integration.isolation.aims import Aim, By, Operation
from tests.integration.isolation.comings import Acknowledge, Connect, Crowd, Intrude, Join, Leave
from tests.integration.isolation.ends import CleanUp, Close, Disconnect
from tests.integration.isolation.returns import Impersonate, Return, ReturnAhead, ReturnLate
from tests.integration.isolation.sends import Batch, Body, Broadcast, Emit, Send, Stall, Thaw
from tests.integration.isolation.streams import Deliver, Open, Say, Shut
from tests.integration.isolation.tokens import Exchange, Look, LookAround, Refresh, Revoke, Stats

PEOPLE = 2
"""In each of three tenants."""
WHO = st.integers(0, 11)
CONTEXTS = st.integers(0, 19)
RARELY = st.sampled_from([False] * 9 + [True])
GOOD = st.builds(Aim, CONTEXTS, st.sampled_from([By.OWN, By.FORMER, By.WIDE]), user=st.sampled_from(["", "own"]))
BAD = st.builds(Aim, CONTEXTS, st.sampled_from(list(By)), CONTEXTS, st.sampled_from(["", "", "own", "other"]))
AIMS = GOOD | BAD
WIDE = st.builds(Aim, CONTEXTS, st.just(By.WIDE))
BODIES = st.builds(
    Body, good=RARELY.map(lambda bad: not bad), critical=RARELY, brief=RARELY, id=st.sampled_from([None, None, 0, 1]),
    variant=RARELY.map(int),
)  # fmt: skip
LANES = st.integers(0, 2)
SCRIPTS = st.lists(
    st.builds(Open, LANES, AIMS)
    | st.builds(Open, LANES, GOOD)
    | st.builds(Say, st.lists(LANES, min_size=1, max_size=4).map(tuple), BODIES)
    | st.builds(Shut, LANES),
    min_size=1,
    max_size=8,
).map(tuple)
SENDS = (
    st.builds(Send, AIMS, BODIES)
    | st.builds(Emit, AIMS)
    | st.builds(Batch, st.lists(st.tuples(AIMS, BODIES), min_size=1, max_size=6).map(tuple))
    | st.builds(Deliver, SCRIPTS)
    | st.builds(Broadcast, WIDE | AIMS, st.booleans())
)
SERVICES = st.sampled_from(["operator", "operator", "local", "deputy", "nobody"])
COMINGS = (
    st.builds(Connect, WHO, RARELY, RARELY)
    | st.builds(Crowd, WHO, st.integers(2, 7))
    | st.builds(Intrude, WHO, st.sampled_from(["foreign tenant", "not.a.token", ""]))
    | st.builds(Join, CONTEXTS, st.none() | st.none() | WHO, RARELY)
)
RETURNS = (
    st.builds(Return, CONTEXTS, st.booleans(), st.integers(0, 5), st.sampled_from([0, 0, 1, 5]))
    | st.builds(Return, CONTEXTS)
    | st.builds(ReturnLate, CONTEXTS, st.integers(0, 2))
    | st.builds(ReturnAhead, CONTEXTS)
    | st.builds(Impersonate, CONTEXTS, WHO)
)
GOINGS = (
    st.builds(Leave, CONTEXTS, st.integers(0, 9), st.booleans())
    | st.builds(Close, AIMS | WIDE, st.sampled_from([0, 4900, 4999]))
    | st.builds(CleanUp, CONTEXTS, SERVICES)
    | st.builds(Disconnect, WHO, SERVICES)
)
OTHERS = (
    st.builds(Stats, AIMS)
    | st.builds(Look, AIMS)
    | st.just(LookAround())
    | st.builds(Exchange, CONTEXTS, CONTEXTS, SERVICES, st.booleans())
    | st.builds(Refresh, AIMS)
    | st.builds(Revoke, AIMS)
    | st.builds(Acknowledge, CONTEXTS)
    | st.builds(Stall, CONTEXTS, st.integers(0, 10))
    | st.builds(Thaw, CONTEXTS)
)
OPERATIONS = SENDS | SENDS | SENDS | COMINGS | GOINGS | RETURNS | OTHERS
STEPS = st.lists(OPERATIONS, min_size=1, max_size=20) | st.lists(OPERATIONS, min_size=12, max_size=20)
PROGRAMS = st.lists(STEPS, min_size=1, max_size=6) | st.lists(STEPS, min_size=5, max_size=7)
FIRST: list[list[Operation]] = [
    [Connect(who % (3 * PEOPLE), slow=who < 2) for who in range(3 * PEOPLE + 2)],
    [Join(number) for number in range(6)],
]
"""Everybody is there when a program begins, two of them twice; two read slowly. Some have a second screen."""
TOUR: list[list[Operation]] = [
    [
        Send(Aim(1), Body(id=0)),
        Send(Aim(1), Body(id=0)),
        Send(Aim(1), Body(good=False)),
        Send(Aim(1, By.NARROW), Body(critical=True)),
        Send(Aim(1, By.OTHER, 4)),
        Broadcast(Aim(1, By.WIDE)),
        Deliver((Say((0,)),)),
        Stall(0, 10),
        Join(1),
    ],
    [Thaw(0), Revoke(Aim(1)), Connect(2, brief=True)],
    [Send(Aim(1)), Leave(2), Close(Aim(3, By.WIDE)), CleanUp(4), Disconnect(5)],
    [Send(Aim(3)), Send(Aim(4))],
]
"""One of nearly everything, with outcomes that no race decides."""
HOMECOMING: list[list[Operation]] = [
    [Send(Aim(number)) for number in (1, 3, 3, 4)],
    [Return(1, missed=3), Return(3, early=True, missed=2), Acknowledge(4)],
    [Send(Aim(1, By.FORMER)), Send(Aim(3, By.FORMER)), Send(Aim(4)), Broadcast(Aim(1, By.WIDE), tenant=True)],
    [ReturnLate(1), Impersonate(1, 3), Impersonate(3, 0), ReturnAhead(5), Return(4, behind=2)],
    [Return(number, early=True) for number in (6, 6, 6)] + [Send(Aim(6)) for _ in range(5)],
    [Return(1, missed=1), Send(Aim(1, By.FORMER)), Send(Aim(5)), Send(Aim(6))],
]
"""Clients come back in every way, and others are kept out."""
