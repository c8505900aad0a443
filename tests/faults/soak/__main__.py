"""`make soak MINUTES=2`: users, services, agents around real sidecars, with every fault there is, and what came of it.

One sidecar keeps its outboxes in memory and one in SQLite; each is killed and drained at random, and stands behind
fault proxies; the workers of its agent service are killed too. Exits with 1 unless no invariant was broken. Loopback
only; stops by itself, and leaves nothing running.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import tempfile
import traceback
from pathlib import Path
from random import Random

from tests.faults.company import gathering
from tests.faults.history import DISK, MEMORY
from tests.faults.soak.report import Outcome, breaches, outcome, table, weather
from tests.faults.soak.storm import LIMITS, PEOPLE, READERS, TALKERS, Storm

AFTERWARDS_S = 120.0
"""For what is under way at the end, settling and parting."""
STORES = {"memory": MEMORY, "sqlite": DISK}


def main() -> int:
    """Parse, run, tell."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("for_minutes", nargs="?", type=float, metavar="MINUTES", help="like --minutes, and before it")
    parser.add_argument("--minutes", type=float, default=2.0, help="how long the storm lasts (2)")
    parser.add_argument("--seed", type=int, help="draw the same again, as far as timing lets it")
    parser.add_argument("--store", choices=sorted(STORES), action="append", help="this one only")
    arguments = parser.parse_args()
    minutes = arguments.minutes if arguments.for_minutes is None else arguments.for_minutes
    seed = secrets.randbelow(10**6) if arguments.seed is None else arguments.seed
    say(f"seed {seed}, {minutes:g} minutes")
    return tell(asyncio.run(soak(minutes * 60, seed, arguments.store or list(STORES))))


def tell(outcomes: list[Outcome]) -> int:
    """Print what was found; the exit code."""
    say(weather(outcomes), table(outcomes), breaches(outcomes))
    return 1 if any(each.violations for each in outcomes) else 0


def say(*paragraphs: str) -> None:
    """To standard output, at once."""
    sys.stdout.write("".join(f"{paragraph}\n" for paragraph in paragraphs if paragraph))
    sys.stdout.flush()


async def soak(seconds: float, seed: int, stores: list[str]) -> list[Outcome]:
    """Every store's company, at once."""
    return list(await asyncio.gather(*(one_store(store, seconds, Random(f"{seed} {store}")) for store in stores)))


async def one_store(store: str, seconds: float, random: Random) -> Outcome:
    """One company's soak. What ends it before its time is a breach like any other."""
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        async with gathering(Path(name), STORES[store], random, patience_s=3.0, **LIMITS) as company:
            storm = Storm(company, random)
            asyncio.get_running_loop().call_later(seconds, storm.over.set)
            faults = []
            try:
                async with asyncio.timeout(seconds + AFTERWARDS_S):
                    await storm.rage()
                    await storm.fall_silent()
                    await company.settle()
                    faults += storm.crew.check()
                    await storm.part()
                    await company.part()
            except Exception as error:  # noqa: BLE001 - whatever it is, it is told beside what was seen until then
                faults = [f"it did not end as it should: {told(error)}"]
            finally:
                await storm.close()
            faults += [*company.verdict(settled=not faults), *storm.verdict()]
            for device in company.devices:
                storm.seen.update({name: device.seen[name] for name in ("full", "gap", "denied", "draining")})
            for talker in storm.talkers:
                storm.seen.update(talker.seen)
            users = len(PEOPLE) + len(READERS) + len(TALKERS)
            return outcome(store, users, company.history, faults, storm.seen, storm.talked())


def told(error: BaseException) -> str:
    """An exception in one line, with where it came from."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())
    return f"{type(error).__name__} {text} ({Path(last.filename).name}:{last.lineno})"


if __name__ == "__main__":
    sys.exit(main())
