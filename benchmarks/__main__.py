"""`python -m benchmarks`: runs the works, prints the table, writes the JSON and, when told so, the page."""

from __future__ import annotations

import os
import resource
from pathlib import Path

# gRPC reads it on import: the servers are processes that exec at once, and need no preparation for a fork.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import click
import uvloop

from benchmarks.machine import facts
from benchmarks.profiles import PROFILED, Profile, profile
from benchmarks.report import Report, between_markers
from benchmarks.results import Result
from benchmarks.servers import cores
from benchmarks.works import WORKS, Work
from benchmarks.works.plan import Plan

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"
JSON_PATH = ROOT / "build" / "bench.json"
TOTAL_MINUTES = sum(work.minutes for work in WORKS.values())
EPILOG = "\n".join(
    [
        "\b",
        f"Works, about {TOTAL_MINUTES:.0f} minutes in all:",
        *(f"  {name:<16} {work.summary} ({work.minutes:g} min)" for name, work in WORKS.items()),
    ]
)


@click.command(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--only", "names", multiple=True, type=click.Choice(list(WORKS)), help="This work; may be repeated.")
@click.option("--quick", is_flag=True, help="Show in a minute that everything works; the figures mean nothing.")
@click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path, dir_okay=False),
    default=JSON_PATH,
    show_default="build/bench.json",
    help="Where the JSON goes.",
)
@click.option(
    "--profile",
    "profiled",
    multiple=True,
    type=click.Choice(list(PROFILED)),
    help="Measure nothing, and say where the time of a message goes; may be repeated.",
)
@click.option("--write", is_flag=True, help="Write the tables between their markers in docs/performance.md.")
def main(names: tuple[str, ...], quick: bool, json_path: Path, profiled: tuple[str, ...], write: bool) -> None:
    """Measure the sidecar against the bare libraries, and print a table.

    A target that is missed is told and is no failure; a run that does not do what it should is one.
    """
    if write and (quick or names):
        raise click.UsageError("--write takes whole runs: neither --quick nor --only goes with it")
    if profiled and names:
        raise click.UsageError("--profile measures nothing: --only does not go with it")
    _prepare()
    plan = Plan(quick)
    if profiled:
        _show_profiles(plan, profiled, write)
    else:
        _show_report(plan, names or tuple(WORKS), json_path, write)


def _prepare() -> None:
    """Leave a core to the servers, and take the descriptors that may be had."""
    os.sched_setaffinity(0, cores().load)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _show_report(plan: Plan, names: tuple[str, ...], json_path: Path, write: bool) -> None:
    results = [result for name in names for result in _run(plan, name, WORKS[name])]
    report = Report(results, facts(), plan.quick)
    click.echo(report.text())
    json_path.parent.mkdir(parents=True, exist_ok=True)
    json_path.write_text(report.json(), encoding="utf-8")
    if write:
        _write("bench", report.markdown())


def _run(plan: Plan, name: str, work: Work) -> list[Result]:
    """The work's lines; one that says why where the machine is too small for it."""
    needed, had = work.descriptors(plan), resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if needed > had:
        return [Result(name, work.summary, note=f"not run: needs {needed:,} descriptors, has {had:,}")]
    click.echo(f"{name}: {work.summary} ...", err=True)
    return uvloop.run(work.run(plan))


def _show_profiles(plan: Plan, works: tuple[str, ...], write: bool) -> None:
    profiles: list[Profile] = [uvloop.run(profile(plan, work)) for work in works]
    click.echo("\n".join(found.text() for found in profiles))
    if write:
        _write("profile", "\n\n".join(found.markdown() for found in profiles))


def _write(marker: str, text: str) -> None:
    PAGE.write_text(between_markers(PAGE.read_text(encoding="utf-8"), marker, text), encoding="utf-8")


if __name__ == "__main__":
    main()
