"""Where the sidecar's time goes: samples taken under a work's load, by group of modules and by function."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks.report import Row, columns, markdown_table
from benchmarks.servers import AGENTS, RunFailed, running_sidecar
from benchmarks.tokens import AckingTokenClient
from benchmarks.works import agent_round, delivery, token_streams
from benchmarks.works.plan import Plan
from benchmarks.works.side import LoadedBy

WINDOWS: Final = 8
"""So many windows of the work are sampled."""

TOP: Final = 15
WRITE_TIMEOUT_S: Final = 30.0
OTHER_THREADS: Final = "other threads: gRPC's own, the store's, the audit trail's"
LOOP: Final = "event loop and native code that it calls (uvloop, gRPC core)"

PARTS: Final = re.compile(r"/sidecar/(rpc|core|ws|security|storage|cluster|ops)/")
PROFILED: Final[dict[str, LoadedBy]] = {
    **{name: delivery.loaded_by(way) for name, way in delivery.PROFILED.items()},
    "agent-round": LoadedBy(agent_round.loaded, AGENTS),
    "token-streams": LoadedBy(token_streams.loaded),
    "token-streams-acks": LoadedBy(partial(token_streams.loaded, client=AckingTokenClient)),
}
"""What `--profile` takes."""

GROUPS: Final = (
    (PARTS, r"sidecar.\1"),
    (re.compile(r"/sidecar/[a-z_]+\.py$"), "sidecar.app"),
    (re.compile(r"/grpc/"), "grpc"),
    (re.compile(r"/google/protobuf/"), "protobuf"),
    (re.compile(r"/websockets/"), "websockets"),
    # asyncio keeps every task in a WeakSet.
    (re.compile(r"/(asyncio|uvloop)/|/_weakrefset\.py$"), LOOP),
)
"""Which group a file belongs to, the first that fits; else `other`."""

NATIVE_CALLS: Final = (
    (re.compile(r"\.(FromString|SerializeToString|WhichOneof|HasField|CopyFrom)\(|\.add\(\)$"), "protobuf"),
    (re.compile(r"call\.(read|write)\("), "grpc"),
    (re.compile(r"transport\.write\("), "socket writes (uvloop and the kernel)"),
)
"""Native code has no frames: its time is found at the calls in its callers' lines."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Shares of the sidecar's CPU, which add up to 1 over the groups. `within` counts a function's callees too."""

    work: str
    groups: list[tuple[str, float]]
    own: list[tuple[str, float]]
    within: list[tuple[str, float]]

    def tables(self) -> list[tuple[str, list[Row]]]:
        """Each table with its title, its first row the head."""
        return [
            (f"{self.work}: CPU by group", _rows("group", self.groups)),
            (f"{self.work}: functions by their own CPU", _rows("function", self.own)),
            (f"{self.work}: functions with what they call", _rows("function", self.within)),
        ]

    def text(self) -> str:
        """For a terminal."""
        return "\n".join(
            line for title, rows in self.tables() for line in (title, *(f"  {row}" for row in columns(rows)), "")
        )

    def markdown(self) -> str:
        """For a page."""
        return "\n\n".join(
            f"**{title}**\n\n" + "\n".join(markdown_table(rows[0], rows[1:])) for title, rows in self.tables()
        )


async def profile(plan: Plan, work: str) -> Profile:
    """Load a sidecar that samples itself. What it costs then is not what it costs otherwise; only shares are told."""
    with tempfile.TemporaryDirectory(prefix="sidecar-profile-") as folder:
        output = Path(folder, "samples.json")
        way = PROFILED[work]
        runner = ("-m", "benchmarks.profiled", str(output))
        async with running_sidecar(runner, settings=way.settings) as server, way.loaded(server, plan) as measure:
            await measure()
            os.kill(server.pid, signal.SIGUSR1)
            for _ in range(WINDOWS):
                await measure()
            os.kill(server.pid, signal.SIGUSR2)
            return attribute(work, await _written(output))


async def _written(output: Path) -> dict[str, Any]:
    """The samples, once they are there: there is no event to wait on in another's file."""
    try:
        async with asyncio.timeout(WRITE_TIMEOUT_S):
            while not output.exists():  # noqa: ASYNC110, ASYNC240
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise RunFailed("the profiler wrote nothing") from None
    samples: dict[str, Any] = json.loads(output.read_text())  # noqa: ASYNC240
    return samples


def attribute(work: str, samples: dict[str, Any]) -> Profile:
    """Shares by group and by function, the largest first."""
    groups: Counter[str] = Counter({OTHER_THREADS: samples["other_threads_ns"]})
    own: Counter[str] = Counter()
    within: Counter[str] = Counter()
    for stack in samples["stacks"]:
        # Code made from text, as a NamedTuple's, is its user's.
        innermost = next(frame for frame in reversed(stack["frames"]) if not frame["file"].startswith("<s"))
        groups[group_of(innermost)] += stack["ns"]
        own[_name(innermost)] += stack["ns"]
        for name in {_name(frame) for frame in stack["frames"] if PARTS.search(frame["file"])}:
            within[name] += stack["ns"]
    total = groups.total()
    if not total:
        raise RunFailed("the profiler took no sample")
    shares = ([(name, ns / total) for name, ns in counted.most_common(TOP)] for counted in (groups, own, within))
    return Profile(work, *shares)


def group_of(frame: dict[str, str]) -> str:
    """Whose the time at that place is."""
    for pattern, group in NATIVE_CALLS:
        if pattern.search(frame["at"]):
            return group
    for pattern, group in GROUPS:
        if found := pattern.search(frame["file"]):
            return found.expand(group)
    return "other"


def _name(frame: dict[str, str]) -> str:
    """The function by its module; by the last folder and file where it is a library's."""
    parts = Path(frame["file"]).with_suffix("").parts
    start = parts.index("site-packages") + 1 if "site-packages" in parts else max(len(parts) - 3, 0)
    start = len(parts) - 1 - parts[::-1].index("sidecar") if "sidecar" in parts else start
    return f"{'.'.join(parts[start:])}: {frame['function']}"


def _rows(what: str, shares: list[tuple[str, float]]) -> list[Row]:
    return [(what, "share"), *((name, f"{share:.1%}".replace("%", " %")) for name, share in shares)]
