"""What plays share: sidecars and runners that live from one to the next."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from clients.conformance.languages import PYTHON, SERVICE, Language
from clients.conformance.runners import Runner
from tests.clients.conformance.play import Play
from tests.clients.conformance.scenarios import Scenario
from tests.clients.conformance.world import Loop, World


class Kept:
    """A runner that is started when it is asked for, and again where it was lost."""

    def __init__(self, start: Callable[[], Runner]) -> None:
        self._start = start
        self._runner: Runner | None = None

    def get(self) -> Runner:
        if self._runner is None or not self._runner.alive:
            self.close()
            self._runner = self._start()
        return self._runner

    def close(self) -> None:
        """Idempotent."""
        if self._runner is not None:
            self._runner.close()
            self._runner = None


class Stage:
    """One sidecar for all scenarios that need none of their own, and a runner for each side of each language."""

    def __init__(self, errors: Path) -> None:
        self._errors = errors
        self._loop = Loop()
        self._shared: World | None = None
        self._runners: dict[tuple[str, str], Kept] = {}

    def play(self, scenario: Scenario, language: Language, side: str) -> None:
        """Play it with that client on that side, and the Python client on the other. Raises what went wrong."""
        under_test = self._runner(language, "under test")
        other = self._runner(PYTHON, "the other side")
        service, user = (under_test, other) if side == SERVICE else (other, under_test)
        with self._world(scenario) as world:
            try:
                Play(scenario, world, service.get(), user.get()).run()
            except BaseException:
                # What it left in them would be the next scenario's trouble.
                service.close()
                user.close()
                raise

    @contextmanager
    def _world(self, scenario: Scenario) -> Iterator[World]:
        if scenario.settings is None:
            self._shared = self._shared or World(self._loop)
            yield self._shared
            return
        world = World(self._loop, scenario.settings)
        try:
            yield world
        finally:
            world.close()

    def _runner(self, language: Language, part: str) -> Kept:
        key = language.name, part
        if key not in self._runners:
            self._runners[key] = Kept(lambda: language.start(self._errors))
        return self._runners[key]

    def close(self) -> None:
        """End everything."""
        for runner in self._runners.values():
            runner.close()
        if self._shared is not None:
            self._shared.close()
        self._loop.close()


@contextmanager
def staged() -> Iterator[Stage]:
    """A stage, for as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix="conformance-") as folder:
        stage = Stage(Path(folder) / "runners.log")
        try:
            yield stage
        finally:
            stage.close()
