"""What is read of a server process, and what is made of the readings: no figure here depends on what was measured."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

PROC = Path("/proc")
QUIET_S = 0.05
QUIET_SHARE = 0.05
"""A process that runs for no more than this share of the time, and would not, is idle but for its ticks."""


def thread_cpu_ns(pid: int, proc: Path = PROC) -> dict[str, int]:
    """Nanoseconds that each living thread of a process has spent on a CPU: the first number of its `schedstat`."""
    return {thread: int(text.split()[0]) for thread, text in _of_threads(pid, "schedstat", proc)}


def is_asleep(pid: int, proc: Path = PROC) -> bool:
    """Whether every thread waits for something but a CPU or a disk, by the third field of its `stat`."""
    return all(text.rpartition(")")[2].split()[0] == "S" for _, text in _of_threads(pid, "stat", proc))


def _of_threads(pid: int, name: str, proc: Path) -> Iterator[tuple[str, str]]:
    for path in (proc / str(pid) / "task").glob(f"*/{name}"):
        try:
            yield path.parent.name, path.read_text()
        except (FileNotFoundError, ProcessLookupError):  # it ended while the others were read
            continue


def cpu_s_between(before: dict[str, int], after: dict[str, int]) -> float:
    """Seconds of CPU between two readings, thread by thread: one that ended in between takes nothing back."""
    return sum(spent - before.get(thread, 0) for thread, spent in after.items()) / 1e9


async def quiet(pid: int) -> None:
    """Return once a process has done what was left over: what it does later is another window's."""
    before = thread_cpu_ns(pid)
    while True:
        await asyncio.sleep(QUIET_S)
        after = thread_cpu_ns(pid)
        if cpu_s_between(before, after) < QUIET_SHARE * QUIET_S and is_asleep(pid):
            return
        before = after


def memory_bytes(pid: int, field: str, proc: Path = PROC) -> int:
    """A size in `/proc/<pid>/status`.

    `VmRSS` is everything resident. `RssAnon` is the part that is the process's own, heap and stacks: connections grow
    in it, and pages of files, which come and go with the page cache, are left out. No process here forks, so that it
    equals the anonymous part of PSS in `smaps_rollup`, for which the kernel would walk every page.
    """
    for line in (proc / str(pid) / "status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise ValueError(f"{field} is not in the status of process {pid}")


def quantile(ordered: Sequence[float], fraction: float) -> float:
    """That quantile of values in ascending order, between two of them linearly; there is at least one."""
    place = fraction * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some values, and the range that holds the middle 80 % of them."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        ordered = sorted(values)
        return cls(quantile(ordered, 0.5), quantile(ordered, 0.1), quantile(ordered, 0.9))


class Sample(Protocol):
    """Something measured once, with one number that is compared."""

    @property
    def cost(self) -> float:
        """The less, the better."""


S = TypeVar("S", bound=Sample)


@dataclass(frozen=True, slots=True)
class Amount:
    """A sample that is its cost and nothing else."""

    cost: float


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of work: how much was done, what it took of the server, and how long each caller waited."""

    operations: int
    cpu_s: float
    wall_s: float
    latencies_s: Sequence[float]

    @property
    def cost(self) -> float:
        """Seconds of the server's CPU for one operation."""
        return self.cpu_s / self.operations

    @property
    def rate(self) -> float:
        """Operations a second."""
        return self.operations / self.wall_s


async def window(
    pid: int,
    operations: int,
    work: Callable[[], Awaitable[Sequence[float]]],
    afterwards: Callable[[], Awaitable[None]] | None = None,
) -> Window:
    """Do the work, which returns the latencies, and read the server's CPU around it.

    `afterwards` waits for what the server does late: its CPU counts to the work, its time does not.
    """
    before = thread_cpu_ns(pid)
    if not before:
        raise ProcessLookupError(f"process {pid} has ended, or this kernel keeps no schedstat")
    started = time.perf_counter()
    latencies = await work()
    wall_s = time.perf_counter() - started
    if afterwards is not None:
        await afterwards()
    return Window(operations, cpu_s_between(before, thread_cpu_ns(pid)), wall_s, latencies)


@dataclass(frozen=True, slots=True)
class Triple(Generic[S]):
    """Ours between two floors: what drifts slowly in the machine drifts through both."""

    before: S
    ours: S
    after: S

    @property
    def ratio(self) -> float:
        """Ours against the mean of the floors around it."""
        return 2 * self.ours.cost / (self.before.cost + self.after.cost)

    @property
    def noise(self) -> float:
        """The second floor against the first: how far a ratio of 1 is from 1 here and now."""
        return self.after.cost / self.before.cost


@dataclass(frozen=True, slots=True)
class Comparison(Generic[S]):
    """Triples, and what they say together."""

    triples: tuple[Triple[S], ...]

    @property
    def ratio(self) -> Spread:
        """Ours against the floor."""
        return Spread.of([triple.ratio for triple in self.triples])

    @property
    def noise(self) -> Spread:
        """The floor against itself."""
        return Spread.of([triple.noise for triple in self.triples])

    @property
    def ours(self) -> list[S]:
        """Our samples."""
        return [triple.ours for triple in self.triples]

    @property
    def floor(self) -> list[S]:
        """The floor's samples."""
        return [sample for triple in self.triples for sample in (triple.before, triple.after)]


async def compare(
    triples: int, floor: Callable[[], Awaitable[S]], ours: Callable[[], Awaitable[S]], *, warm_up: bool = True
) -> Comparison[S]:
    """Measure so many triples, one after the other. To warm up, one of each before pays for what is done once."""
    if warm_up:
        await floor()
        await ours()
    return Comparison(tuple([Triple(await floor(), await ours(), await floor()) for _ in range(triples)]))


def waits_at(comparison: Comparison[Window], fraction: float) -> Comparison[Amount]:
    """The same windows by how long their callers waited, at that quantile of each."""

    def wait(measured: Window) -> Amount:
        return Amount(quantile(sorted(measured.latencies_s), fraction))

    return Comparison(tuple([Triple(wait(t.before), wait(t.ours), wait(t.after)) for t in comparison.triples]))


def median_cost(samples: Sequence[Sample]) -> float:
    """The median of the samples' costs."""
    return statistics.median(sample.cost for sample in samples)
