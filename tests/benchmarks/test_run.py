"""The bench as it is called: every work, in little, with real servers."""

from __future__ import annotations

import ast
import asyncio
import json
import signal
import sys
from pathlib import Path

import pytest

from benchmarks.results import TARGETS
from benchmarks.works import WORKS
from clients.conformance.languages import LANGUAGES, SERVICE

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
CLIENTS = [
    f"client-{language.name.lower()}{figure}"
    for language in LANGUAGES
    if SERVICE in language.sides
    for figure in ("", "-share")
]
ROUNDS = [
    f"agent-round{way}-{quantile}" for way in ("", "-alone", "-single", "-gathering") for quantile in ("p50", "p99")
]
TOLD = {"crowd-spread", "sqlite-silent", "resume-sqlite", "token-streams-held"} | ({*CLIENTS, *ROUNDS} - TARGETS.keys())
RESULTS = {
    "start": ["start", "idle-rss"],
    "crowd": ["crowd-active", "crowd-spread", "crowd-memory"],
    "sqlite": ["sqlite", "sqlite-rate", "sqlite-silent", "sqlite-silent-rate"],
    "resume": ["resume", "resume-sqlite"],
    "agent-round": ROUNDS,
    "token-streams": ["token-streams", "token-streams-held"],
    "clients": CLIENTS,
    "stalled": ["stalled-memory", "stalled-beside"],
}


async def bench(*arguments: str | Path, descriptors: int | None = None) -> tuple[int, str]:
    """Run it; the exit code, and what it wrote."""
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    if descriptors is not None:
        command = ["sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh", *command]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:  # the test is over before it: it takes its servers with it
            process.send_signal(signal.SIGINT)
    assert process.returncode is not None
    return process.returncode, output.decode()


@pytest.mark.timeout(600)  # `clients` builds what was not built before
@pytest.mark.parametrize("work", WORKS)
async def test_a_work_ends_and_is_told_twice(work: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "bench.json"
    code, output = await bench("--quick", "--only", work, "--json", path)
    assert code == 0, output
    assert "QUICK RUN" in output
    document = json.loads(path.read_text())
    assert document["quick"] is True
    assert [result["key"] for result in document["results"]] == RESULTS.get(work, [work])
    for result in document["results"]:
        assert result["title"] in output
        if result["note"].endswith("is missing"):
            continue
        assert result["ours"] > 0
        assert result["verdict"].startswith(("met", "missed by", "told"))


def test_every_target_has_a_result() -> None:
    results = {result for work in WORKS for result in RESULTS.get(work, [work])}
    assert results == TARGETS.keys() | TOLD


@pytest.mark.parametrize(
    ("work", "part"),
    [
        ("deliver-100", "sidecar.core"),
        ("deliver-sqlite", "sidecar.storage"),
        ("agent-round", "sidecar.ws"),
        ("token-streams", "sidecar.core"),
    ],
)
async def test_a_profile_says_where_the_time_goes(work: str, part: str) -> None:
    code, output = await bench("--quick", "--profile", work)
    assert code == 0, output
    assert f"{work}: CPU by group" in output
    assert part in output
    assert "DeliverStream" in output


async def test_a_machine_with_too_few_descriptors_is_told_and_is_no_failure(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    code, output = await bench("--only", "crowd", "--json", path, descriptors=1_024)
    assert code == 0, output
    (result,) = json.loads(path.read_text())["results"]
    assert result["verdict"] == "not run"
    assert result["note"] == "not run: needs 16,200 descriptors, has 1,024"


@pytest.mark.parametrize(
    "arguments", [("--write", "--quick"), ("--write", "--only", "unary"), ("--profile", "unary", "--only", "unary")]
)
async def test_options_that_contradict_each_other_are_refused(arguments: tuple[str, ...]) -> None:
    page = ROOT / "docs" / "performance.md"
    before = page.read_text()
    code, output = await bench(*arguments)
    assert code == 2
    assert "not go" in output or "goes with" in output
    assert page.read_text() == before


def test_the_sidecar_is_driven_from_outside() -> None:
    """Of the sidecar only the generated stubs are imported; but for what runs it under the profiler."""
    found = {
        (path.name, module)
        for path in BENCHMARKS.rglob("*.py")
        for module in imported(path)
        if module.partition(".")[0] in {"sidecar", "tests"} and not module.startswith("sidecar.api")
    }
    assert found == {("profiled.py", "sidecar.cli"), ("as_installed.py", "sidecar.cli")}


def imported(path: Path) -> set[str]:
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            modules.add(node.module)
    return modules
