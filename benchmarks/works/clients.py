"""How fast each client's sender is: one process of its language, 128 bytes a message, a hundred users."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final, NamedTuple

from benchmarks.acks import AckingClient
from benchmarks.measure import cpu_s_between, quantile, thread_cpu_ns
from benchmarks.results import Result
from benchmarks.servers import BUILD, RunFailed, Server, running_sidecar
from benchmarks.sockets import Crowd
from benchmarks.works.plan import Plan
from clients.conformance.languages import LANGUAGES, SERVICE, Language
from clients.conformance.runners import Runner

USERS: Final = 100
PAYLOAD_BYTES: Final = 128
WARM_UP_S, WINDOW_S, WINDOWS = 4.0, 4.0, 5
QUICK_WARM_UP_S, QUICK_WINDOW_S, QUICK_WINDOWS = 1.0, 1.0, 1
ANSWER_TIMEOUT_S: Final = 60.0


class Load(NamedTuple):
    """What one stretch of it came to. The shares are of a core each."""

    rate: float
    client_cpu_s: float
    share: float
    client_share: float


async def clients(plan: Plan) -> list[Result]:
    """Every client that this machine can run, one after the other, each with a sidecar of its own."""
    return [result for language in LANGUAGES if SERVICE in language.sides for result in await _measured(language, plan)]


async def _measured(language: Language, plan: Plan) -> list[Result]:
    key = f"client-{language.name.lower()}"
    title = f"{language} client's sender, {PAYLOAD_BYTES} bytes to {USERS} users"
    share_title = f"{language} client's sender: the sidecar's share of its core"
    if language.missing:
        note = f"not run: {language.missing} is missing"
        return [Result(key, title, note=note), Result(f"{key}-share", share_title, note=note)]
    loads = await _loads(language, plan)
    share = _median(loads, "share") * 100
    return [
        Result(key, title, "/s", ours=_median(loads, "rate"), samples=len(loads), note=_how(loads)),
        Result(f"{key}-share", share_title, "%", ours=share, samples=len(loads)),
    ]


async def _loads(language: Language, plan: Plan) -> list[Load]:
    warm_up_s, window_s, windows = (
        (QUICK_WARM_UP_S, QUICK_WINDOW_S, QUICK_WINDOWS) if plan.quick else (WARM_UP_S, WINDOW_S, WINDOWS)
    )
    BUILD.mkdir(exist_ok=True)
    runner = await asyncio.to_thread(language.start, BUILD / "bench-clients.log")
    try:
        async with running_sidecar() as server:
            crowd = Crowd(server, AckingClient)
            await crowd.join([f"user-{number}" for number in range(USERS)])
            await _ask(runner, "open", endpoint=server.grpc_target)
            await _load(runner, server, crowd, warm_up_s)
            return [await _load(runner, server, crowd, window_s) for _ in range(windows)]
    finally:
        await asyncio.to_thread(runner.close)


async def _load(runner: Runner, server: Server, crowd: Crowd, seconds: float) -> Load:
    """Keep the client's sender full for so long; everything that it had a receipt for has arrived, and nothing else."""
    before, arrived = _readings(runner, server), crowd.tally.count
    targets = [route._asdict() for route in crowd.routes]
    started = time.perf_counter()
    done = await _ask(runner, "load", targets=targets, payload_bytes=PAYLOAD_BYTES, seconds=seconds)
    wall_s = time.perf_counter() - started
    client_s, server_s = (cpu_s_between(*pair) for pair in zip(before, _readings(runner, server), strict=True))
    if done["refused"] or not done["sent"]:
        raise RunFailed(f"{done['sent']} were sent and {done['refused']} refused")
    await crowd.tally.reach(arrived + done["sent"])
    return Load(done["sent"] / wall_s, client_s / done["sent"], server_s / wall_s, client_s / wall_s)


def _readings(runner: Runner, server: Server) -> tuple[dict[str, int], dict[str, int]]:
    return thread_cpu_ns(runner.pid), thread_cpu_ns(server.pid)


async def _ask(runner: Runner, do: str, **said: Any) -> dict[str, Any]:
    async with asyncio.timeout(ANSWER_TIMEOUT_S):
        answer = await asyncio.wrap_future(runner.begin(do, client="client", **said))
    if "ok" not in answer:
        raise RunFailed(f"{do}: {answer}")
    done = answer["ok"]
    assert isinstance(done, dict)
    return done


def _how(loads: list[Load]) -> str:
    client_us, client_share = _median(loads, "client_cpu_s") * 1e6, _median(loads, "client_share") * 100
    return f"{client_us:.1f} µs of the client's CPU a message, {client_share:.0f} % of a core"


def _median(loads: list[Load], name: str) -> float:
    return quantile(sorted(getattr(load, name) for load in loads), 0.5)
