"""Rules of the house that no tool checks, read from the files themselves; each is seen to refuse what breaks it."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TypeGuard

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [path for path in sorted((ROOT / "sidecar").rglob("*.py")) if "api" not in path.relative_to(ROOT).parts]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
PYTHON = [
    *SOURCES,
    *TESTS,
    *(
        p
        for name in ("benchmarks", "clients/conformance", "clients/python", "examples", "scripts")
        for p in (ROOT / name).rglob("*.py")
    ),
]
WRITTEN = ("sidecar", "tests", "proto", "packages", "clients", "examples", "scripts", "docs", "benchmarks", ".ci")
"""The folders of what people write; those that tools fill are none of them."""

MAX_LINES = 400

# Both lists may only shrink: an entry that is not needed any more fails too.
LONG_FILES = {
    "sidecar/core/manager.py",
    "tests/core/test_manager.py",
    "tests/core/test_outbox.py",
    "tests/rpc/rig.py",
    "tests/rpc/test_deliver.py",
    "tests/security/test_audit.py",
    "tests/security/test_context_tokens.py",
    "tests/test_cli.py",
    "tests/test_config.py",
    "tests/ws/test_session.py",
}
TESTED_ELSEWHERE = {
    "__main__.py": "tests/support/running.py",
    "building.py": "tests/test_app.py",
    "config/addresses.py": "tests/test_config.py",
    "config/checks.py": "tests/test_config.py",
    "config/errors.py": "tests/test_config.py",
    "config/sections.py": "tests/test_config.py",
    "config/settings.py": "tests/test_config.py",
    "config/sources.py": "tests/test_config.py",
    "config/values.py": "tests/test_config.py",
    "core/deliveries.py": "tests/core/test_agents.py",
    "core/events.py": "tests/core/test_lifecycle.py",
    "core/gaps.py": "tests/core/test_outbox.py",
    "core/idempotency.py": "tests/core/test_manager.py",
    "core/inbox.py": "tests/core/test_conversation.py",
    "core/statistics.py": "tests/core/test_factory.py",
    "core/stored.py": "tests/core/test_restore.py",
    "core/workers.py": "tests/core/test_agents.py",
    "ops/http.py": "tests/ops/test_edge.py",
    "rpc/acceptance.py": "tests/rpc/test_delivery.py",
    "rpc/callers.py": "tests/rpc/test_refusals.py",
    "rpc/status.py": "tests/rpc/test_refusals.py",
    "rpc/translate.py": "tests/rpc/test_delivery.py",
    "security/audit_writer.py": "tests/security/test_audit.py",
    "security/refusals.py": "tests/security/test_audit_refusals.py",
    "security/storage_key.py": "tests/storage/sqlite/test_files.py",
    "storage/sqlite/batch.py": "tests/storage/sqlite/test_store.py",
    "storage/sqlite/database.py": "tests/storage/sqlite/test_files.py",
    "storage/sqlite/errors.py": "tests/storage/sqlite/test_files.py",
    "storage/sqlite/requests.py": "tests/storage/sqlite/test_store.py",
    "storage/sqlite/rows.py": "tests/storage/sqlite/test_store.py",
    "storage/sqlite/sealing.py": "tests/storage/sqlite/test_store.py",
    "storage/sqlite/writer.py": "tests/storage/sqlite/test_store.py",
    "ws/admission.py": "tests/ws/test_handshake.py",
    "ws/greeting.py": "tests/ws/test_session.py",
    "ws/opening.py": "tests/ws/test_session.py",
    "ws/ports.py": "tests/ws/harness.py",
}
"""Modules without a test module of their own name, and where their tests are."""

CLOCK_LOOPS = {
    "tests/security/test_audit.py": 1,  # burns the interpreter on purpose
    "tests/support/running.py": 1,  # another process's file has no event to wait on
}
MANAGERS = {
    "IsolatedWebSocketManager",
    "ConnectionContextFactoryManager",
    "UserLevelResourceManager",
    "ConnectionLifecycleManager",
}
"""The names that the design gives."""

_CLOCKS = {"time", "monotonic", "perf_counter", "time_ns", "monotonic_ns", "perf_counter_ns"}
_SLEEPING_PROGRAM = re.compile(r"^sleep$|\bsleep(\(| \d)")
_EMPTY_NAME = re.compile(r"(Manager|Helper|Util|Utils)$")
_PATCHES = {"setattr", "delattr", "setitem", "delitem"}
_OURS_TO_SET = {"sys.argv"}
# In pieces, so that this file is not refused.
_UNFINISHED = re.compile("|".join(rf"\b{a}{b}\b" for a, b in (("TO", "DO"), ("FIX", "ME"), ("XX", "X"), ("HA", "CK"))))
_NO_COVER = re.compile(r"#\s*pragma:\s*no (cover|branch)(?P<reason>.*)")


Nodes = list[ast.AST]
Rule = Callable[[Nodes], Iterator[int]]


def name_of(node: ast.expr) -> str:
    """The last part of a name: `sleep` of `asyncio.sleep`."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def sleeps(nodes: Nodes) -> Iterator[int]:
    """Lines that sleep, or could under another name: a test waits on what happens. `sleep(0)` only lets others run."""
    yielding = {id(call.func) for call in nodes if isinstance(call, ast.Call) and only_yields(call)}
    return (node.lineno for node in nodes if id(node) not in yielding and pauses(node))


def pauses(node: ast.AST) -> TypeGuard[ast.expr | ast.alias]:
    """Whether that names a way to sleep, in this program or in one that it runs."""
    match node:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name in {"sleep", "sleep_until", "sleep_forever", "wait_for_timeout"}
        case ast.alias(name=name, asname=str()):
            return "sleep" in name
        case ast.Constant(value=str(text)):
            return _SLEEPING_PROGRAM.search(text) is not None
    return False


def only_yields(call: ast.Call) -> bool:
    """Whether that is `sleep(0)`, with nothing else."""
    match call.args:
        case [ast.Constant(value=value)] if type(value) is int and value == 0:
            return name_of(call.func) == "sleep" and not call.keywords
    return False


def clock_loops(nodes: Nodes) -> Iterator[int]:
    """Loops that look at a clock to know when to end: they poll."""
    for loop in nodes:
        if isinstance(loop, ast.While):
            calls = [node for node in ast.walk(loop.test) if isinstance(node, ast.Call)]
            if any(name_of(call.func) in _CLOCKS for call in calls):
                yield loop.lineno


def patches(nodes: Nodes) -> Iterator[int]:
    """Lines that put something else in an internal's place."""
    imported = {alias.asname or alias.name for node in imports(nodes) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            if any("mock" in module.split(".") for module in modules):
                yield node.lineno
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in _PATCHES and name_of(node.func.value) in {"monkeypatch", "MonkeyPatch", "patch"}:
                yield node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
            own = name_of(node.value) in {"self", "cls"}
            of_module = name_of(node.value) in imported and ast.unparse(node) not in _OURS_TO_SET
            if (node.attr.startswith("_") and not own) or of_module:
                yield node.lineno


def imports(nodes: Nodes) -> Iterator[ast.Import | ast.ImportFrom]:
    """Every import, wherever it stands."""
    return (node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom))


def names_to_avoid(nodes: Nodes) -> Iterator[int]:
    """Classes named for nothing: only the design's own names end in Manager."""
    for node in nodes:
        if isinstance(node, ast.ClassDef) and node.name not in MANAGERS and _EMPTY_NAME.search(node.name):
            yield node.lineno


def found(rule: Rule, paths: list[Path]) -> dict[str, list[int]]:
    """The lines that break a rule, by file."""
    lines = {str(path.relative_to(ROOT)): sorted(set(rule(nodes_of(path)))) for path in paths}
    return {path: broken for path, broken in lines.items() if broken}


@cache
def nodes_of(path: Path) -> Nodes:
    """The file's syntax tree, flat; several rules read it."""
    return parsed(path.read_text(encoding="utf-8"))


def parsed(text: str) -> Nodes:
    return list(ast.walk(ast.parse(text)))


def test_no_test_sleeps() -> None:
    assert found(sleeps, [path for path in TESTS if path != Path(__file__).resolve()]) == {}


@pytest.mark.parametrize(
    "code",
    [
        "await asyncio.sleep(0.1)",
        "time.sleep(1)",
        "sleep(0.0)",
        "await trio.sleep(delay)",
        "await asyncio.sleep(0, result)",
        "await asyncio.sleep(delay=0)",
        "wait = asyncio.sleep",
        "from time import sleep as pause",
        "page.wait_for_timeout(0)",
        "run([python, '-c', 'import time; time.sleep(9)'])",
        "run(['sleep', '9'])",
        "run('sleep 9', shell=True)",
    ],
)
def test_a_sleep_is_found(code: str) -> None:
    assert list(sleeps(parsed(f"async def test():\n    {code}"))) == [2]


def test_letting_others_run_is_no_sleep() -> None:
    assert not list(sleeps(parsed("async def test():\n    await asyncio.sleep(0)\n    '''A word on sleep.'''")))


def test_no_test_polls_the_clock() -> None:
    assert {path: len(lines) for path, lines in found(clock_loops, TESTS).items()} == CLOCK_LOOPS


@pytest.mark.parametrize("clock", ["time.time()", "monotonic()", "loop.time()", "time.perf_counter_ns()"])
def test_a_loop_that_polls_the_clock_is_found(clock: str) -> None:
    assert list(clock_loops(parsed(f"while not done and {clock} < end:\n    look()"))) == [1]
    assert not list(clock_loops(parsed(f"while look():\n    seen = {clock}")))


def test_internals_are_never_patched() -> None:
    assert found(patches, TESTS) == {}


@pytest.mark.parametrize(
    "code",
    [
        "from unittest import mock",
        "import unittest.mock as m",
        "from unittest.mock import patch",
        "monkeypatch.setattr(module, 'name', value)",
        "pytest.MonkeyPatch.setitem(table, 'key', value)",
        "manager._outbox = other",
        "edge.edge._ports = other",
        "del manager._outbox",
    ],
)
def test_a_patch_is_found(code: str) -> None:
    assert list(patches(parsed(code))) == [1]


def test_an_assignment_to_an_imported_name_is_a_patch() -> None:
    assert list(patches(parsed("import time\ntime.time = fake"))) == [2]
    assert not list(patches(parsed("monkeypatch.setenv('A', 'b')\nself._own = 1\nhandle.public = 2")))


def test_every_module_has_its_tests() -> None:
    modules = {str(path.relative_to(ROOT / "sidecar")) for path in SOURCES if path.name != "__init__.py"}
    without = {name for name in modules if not mirror_of(Path(name)).exists()}
    assert without == set(TESTED_ELSEWHERE)
    assert [where for where in TESTED_ELSEWHERE.values() if not (ROOT / where).exists()] == []


def mirror_of(module: Path) -> Path:
    return ROOT / "tests" / module.parent / f"test_{module.name}"


def test_files_are_short() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in PYTHON}
    assert {path for path, lines in lengths.items() if lines > MAX_LINES} == LONG_FILES


def test_names_say_what_a_thing_is() -> None:
    assert found(names_to_avoid, SOURCES) == {}
    assert [
        path.name for path in SOURCES if path.stem in {"utils", "util", "helpers", "helper", "common", "misc"}
    ] == []
    assert list(names_to_avoid(parsed("class ThingManager:\n    pass"))) == [1]


def test_nothing_is_left_to_do() -> None:
    texts = [path for name in WRITTEN for path in (ROOT / name).rglob("*") if path.is_file() and is_text(path)]
    texts += [ROOT / name for name in ("README.md", "CHANGELOG.md", "Dockerfile", "Makefile")]
    assert len(texts) > len(PYTHON)
    assert [str(p.relative_to(ROOT)) for p in texts if _UNFINISHED.search(p.read_text(encoding="utf-8"))] == []
    assert _UNFINISHED.search("# " + "TO" + "DO: later")


def is_text(path: Path) -> bool:
    """Whether people write it: no lock file, no icon, nothing that a tool has built."""
    written = {".py", ".pyi", ".md", ".proto", ".toml", ".html", ".css", ".js", ".json", ".in", ".sh", ""}
    written |= {".go", ".java", ".mjs", ".mod", ".ts", ".xml", ".yaml"}
    built = {"__pycache__", "build", "dist", "node_modules", "target"}
    return path.suffix in written and not built & set(path.relative_to(ROOT).parts)


def test_what_coverage_leaves_out_of_the_core_says_why() -> None:
    """Elsewhere it may be left out for what the line itself says."""
    for path in SOURCES:
        if path.relative_to(ROOT / "sidecar").parts[0] in {"core", "security"}:
            assert unexplained(path.read_text(encoding="utf-8")) == [], path


def unexplained(text: str) -> list[str]:
    return [match.group() for match in _NO_COVER.finditer(text) if len(match["reason"].split()) < 4]


def test_a_left_out_line_without_a_reason_is_found() -> None:
    assert unexplained("x = 1  # pragma: no cover\n") == ["# pragma: no cover"]
    assert unexplained("x = 1  # pragma: no cover - the kernel alone decides when\n") == []
