"""Isolation over the running sidecar: whatever many users and services do at once, nobody hears or changes another's.

An example is a program of steps; a step is a batch of operations that run at once. Between steps everything that is
known must hold, and in the end the audit trail must tell each refusal, once. SIDECAR_TEST_EXAMPLES=N runs N times as
many examples.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections import Counter
from collections.abc import Iterator
from itertools import count
from types import TracebackType

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings

from tests.integration.isolation.aims import Operation
from tests.integration.isolation.programs import FIRST, HOMECOMING, PEOPLE, PROGRAMS, TOUR
from tests.integration.isolation.setting import OPERATOR, environment
from tests.integration.isolation.world import World
from tests.support.running import RunningSidecar, running_sidecar

FACTOR = int(os.environ.get("SIDECAR_TEST_EXAMPLES", "1"))
SHRINKING_S = 60.0
"""How long a shorter story of a failure is looked for."""
STEP_S = 45

ALWAYS_SEEN = {
    *("answered ok", "duplicates", "broadcasts", "mirrors", "gaps", "closed 4000"),
    *("ended client_closed", "ended closed_by_service", "ended cleaned_up", "ended disconnected"),
    *("refused ISOLATION_VIOLATION", "refused MANAGER_GONE", "refused SCOPE_MISSING", "refused TOKEN_REVOKED"),
    *("answered BAD_REQUEST", "answered LANE_NOT_OPEN"),
    *("came back after a cut", "came back early", "came back late", "came back ahead", "came in as another"),
    *("recovered full", "recovered gap", "replayed", "missed acknowledged", "sent with a former token", "closed 4503"),
}
"""A run that has not seen these has tested nothing."""


@pytest.fixture(scope="module", params=["memory", "sqlite"])
def sidecar(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[RunningSidecar]:
    folder = tmp_path_factory.mktemp("isolation")
    store = {"SIDECAR_STORAGE__KIND": request.param}
    if request.param == "sqlite":
        store |= {"SIDECAR_STORAGE__PATH": f"{folder}/outbox.db", "SIDECAR_STORAGE__KEY_FILE": f"{folder}/outbox.key"}
    with running_sidecar(folder, **environment(folder), **store) as running:
        running.service_token = OPERATOR
        yield running
    assert '"incident"' not in (folder / "log.jsonl").read_text()
    if not request.session.testsfailed:
        assert Counter(ALWAYS_SEEN) <= +SEEN, ALWAYS_SEEN - (+SEEN).keys()


NUMBERS = count()
SEEN: Counter[str] = Counter()


class Failures:
    """The programs that have failed. What a race brought about once has failed, though it may not come again."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[BaseException, TracebackType | None]] = {}
        self._until = math.inf

    def settled(self, program: str) -> bool:
        """Raises what is known of this program; True once no other is to be tried any more."""
        if program in self._known:
            error, traceback = self._known[program]
            raise error.with_traceback(traceback)
        return time.monotonic() > self._until

    def add(self, program: str, error: BaseException) -> None:
        self._until = min(self._until, time.monotonic() + SHRINKING_S)
        self._known[program] = error, error.__traceback__


FAILURES = Failures()


@pytest.mark.timeout(120 + 60 * FACTOR)
@settings(
    max_examples=20 * FACTOR,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
@example(program=TOUR)
@example(program=HOMECOMING)
@given(program=PROGRAMS)
async def test_nobody_hears_or_changes_another(sidecar: RunningSidecar, program: list[list[Operation]]) -> None:
    if FAILURES.settled(repr(program)):
        return
    async with sidecar.service() as service:
        world = World(sidecar, service, next(NUMBERS), PEOPLE)
        try:
            await play(world, program)
        except BaseException as error:
            FAILURES.add(repr(program), error)
            await world.abandon()
            raise


async def play(world: World, program: list[list[Operation]]) -> None:
    """Run each step's operations at once, and look at everything in between."""
    await world.start()
    for step in (*FIRST, *program):
        world.begin_step()
        async with asyncio.timeout(STEP_S):
            outcomes = await asyncio.gather(*(operation.run(world) for operation in step), return_exceptions=True)
        world.check_faults()
        for outcome in outcomes:
            if outcome is not None:
                raise outcome
        await world.settle()
    await world.finish()
    SEEN.update(world.seen)
