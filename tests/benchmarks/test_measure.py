"""The arithmetic of the bench, and what it reads of a process."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

import pytest

from benchmarks.measure import (
    Amount,
    Comparison,
    Spread,
    Triple,
    Window,
    compare,
    cpu_s_between,
    is_asleep,
    median_cost,
    memory_bytes,
    quantile,
    quiet,
    thread_cpu_ns,
    waits_at,
    window,
)


def write_thread(proc: Path, thread: str, name: str, text: str) -> None:
    path = proc / "7" / "task" / thread / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_cpu_of_every_thread_is_the_first_number_of_its_schedstat(tmp_path: Path) -> None:
    write_thread(tmp_path, "7", "schedstat", "1500000000 99 3\n")
    write_thread(tmp_path, "8", "schedstat", "20 88 1\n")
    assert thread_cpu_ns(7, tmp_path) == {"7": 1_500_000_000, "8": 20}


@pytest.mark.parametrize(("state", "asleep"), [("S", True), ("R", False), ("D", False)])
def test_a_process_is_asleep_when_all_its_threads_are(tmp_path: Path, state: str, asleep: bool) -> None:
    write_thread(tmp_path, "7", "stat", "7 (python) S 1 7 7")
    write_thread(tmp_path, "8", "stat", f"8 (S) R (odd) {state} 1 7 7")
    assert is_asleep(7, tmp_path) is asleep


def test_a_process_that_is_gone_has_no_threads(tmp_path: Path) -> None:
    assert thread_cpu_ns(7, tmp_path) == {}


def test_a_thread_that_ended_takes_nothing_back_and_a_new_one_counts_whole() -> None:
    before = {"1": 1_000_000_000, "ended": 5_000_000_000}
    after = {"1": 1_250_000_000, "new": 500_000_000}
    assert cpu_s_between(before, after) == pytest.approx(0.75)


def test_this_process_has_spent_time_and_memory() -> None:
    before = thread_cpu_ns(os.getpid())
    sum(range(1_000_000))
    assert cpu_s_between(before, thread_cpu_ns(os.getpid())) >= 0
    assert sum(before.values()) > 0
    assert 0 < memory_bytes(os.getpid(), "RssAnon") < memory_bytes(os.getpid(), "VmRSS")


def test_memory_is_read_in_bytes(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "status").write_text("Name:\tpython\nVmRSS:\t  2048 kB\nRssAnon:\t  1000 kB\n")
    assert memory_bytes(7, "VmRSS", tmp_path) == 2_097_152
    assert memory_bytes(7, "RssAnon", tmp_path) == 1_024_000
    with pytest.raises(ValueError, match="VmSwap is not in the status of process 7"):
        memory_bytes(7, "VmSwap", tmp_path)


@pytest.mark.parametrize(
    ("values", "fraction", "expected"),
    [
        ([3.0], 0.999, 3.0),
        ([1.0, 2.0], 0.5, 1.5),
        ([0.0, 10.0, 20.0], 0.25, 5.0),
        ([0.0, 10.0, 20.0], 1.0, 20.0),
        ([0.0, 10.0, 20.0], 0.0, 0.0),
    ],
)
def test_a_quantile_lies_between_its_neighbours(values: list[float], fraction: float, expected: float) -> None:
    assert quantile(values, fraction) == pytest.approx(expected)


def test_a_spread_needs_no_order() -> None:
    assert Spread.of([10.0, 0.0, 5.0, 2.0, 8.0, 1.0, 9.0, 3.0, 7.0, 4.0, 6.0]) == Spread(5.0, 1.0, 9.0)


def test_a_ratio_is_ours_against_the_mean_of_the_floors_around_it() -> None:
    triple = Triple(Amount(2.0), Amount(6.0), Amount(4.0))
    assert triple.ratio == pytest.approx(2.0)
    assert triple.noise == pytest.approx(2.0)


def test_a_comparison_is_the_median_of_its_triples() -> None:
    triples = tuple(Triple(Amount(1.0), Amount(ours), Amount(1.0)) for ours in (1.0, 9.0, 2.0))
    comparison = Comparison(triples)
    assert comparison.ratio.median == pytest.approx(2.0)
    assert comparison.noise == Spread(1.0, 1.0, 1.0)
    assert median_cost(comparison.ours) == pytest.approx(2.0)
    assert len(comparison.floor) == 6


def test_windows_compare_by_how_long_their_callers_waited() -> None:
    floor, ours = Window(3, 9.0, 9.0, [3.0, 1.0, 2.0]), Window(3, 9.0, 9.0, [5.0, 9.0, 7.0])
    comparison = waits_at(Comparison((Triple(floor, ours, floor),)), 0.5)
    assert comparison.ratio.median == pytest.approx(3.5)
    assert [sample.cost for sample in comparison.ours] == [7.0]


@pytest.mark.parametrize(("warm_up", "order"), [(True, "fo fof fof"), (False, "fof fof")])
async def test_triples_are_measured_floor_ours_floor(warm_up: bool, order: str) -> None:
    measured = ""

    async def floor() -> Amount:
        nonlocal measured
        measured += "f"
        return Amount(float(len(measured)))

    async def ours() -> Amount:
        nonlocal measured
        measured += "o"
        return Amount(float(len(measured)))

    comparison = await compare(2, floor, ours, warm_up=warm_up)
    assert measured == order.replace(" ", "")
    first = comparison.triples[0]
    assert (first.ours.cost - first.before.cost, first.after.cost - first.ours.cost) == (1, 1)


async def test_a_window_has_the_process_s_cpu_and_the_callers_waits() -> None:
    async def work() -> list[float]:
        sum(range(3_000_000))
        return [0.25, 0.5]

    measured = await window(os.getpid(), 2, work)
    assert measured.latencies_s == [0.25, 0.5]
    assert measured.cpu_s > 0
    assert measured.cost == pytest.approx(measured.cpu_s / 2)
    assert measured.rate == pytest.approx(2 / measured.wall_s)
    assert Window(10, 2.0, 4.0, ()).rate == pytest.approx(2.5)


async def test_what_comes_late_counts_to_the_work_s_cpu_and_not_to_its_time() -> None:
    steps = ""

    async def work() -> list[float]:
        nonlocal steps
        steps += "w"
        return []

    async def afterwards() -> None:
        nonlocal steps
        steps += "a"
        while time.thread_time() < busy_until:
            pass

    busy_until = time.thread_time() + 0.5
    measured = await window(os.getpid(), 1, work, afterwards)
    assert steps == "wa"
    assert measured.wall_s < 0.4 < measured.cpu_s


async def test_nothing_is_measured_of_a_process_that_has_ended() -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "")
    await process.wait()

    async def work() -> list[float]:
        raise AssertionError("there is nobody to work for")

    with pytest.raises(ProcessLookupError, match="has ended"):
        await window(process.pid, 1, work)


BUSY_FOR_A_WHILE = """
import time
print("busy", flush=True)
while time.process_time() < 0.3:
    pass
input()
"""


async def test_a_process_is_quiet_once_it_has_nothing_to_do() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", BUSY_FOR_A_WHILE, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    await process.stdout.readline()
    await quiet(process.pid)
    assert sum(thread_cpu_ns(process.pid).values()) >= 0.3e9
    await process.communicate(b"\n")
