"""The rules that the Dockerfile keeps, read from its text: no Docker engine is needed."""

import json
import re
from pathlib import Path, PurePath

import pytest

from tests.support.dockerfile import IgnoreFile, Instruction, Stage, parse

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def stages() -> list[Stage]:
    return parse((ROOT / "Dockerfile").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def final(stages: list[Stage]) -> Stage:
    return stages[-1]


def test_parse_joins_continuations_and_splits_stages() -> None:
    text = "ARG A=1\n# note\nFROM x AS one\nRUN a \\\n    # inner\n    && b\n\nFROM y\nUSER 1\n"
    assert parse(text) == [
        Stage("one", [Instruction("FROM", "x AS one"), Instruction("RUN", "a && b")]),
        Stage("", [Instruction("FROM", "y"), Instruction("USER", "1")]),
    ]


def test_builds_in_two_stages_and_ships_the_last(stages: list[Stage], final: Stage) -> None:
    assert [stage.name for stage in stages] == ["builder", "runtime"]
    assert final.every("COPY") == ["--from=builder /opt/sidecar /opt/sidecar"]


def test_runs_as_a_numeric_user_other_than_root(final: Stage) -> None:
    user, _, group = final.only("USER").partition(":")
    assert int(user) > 0
    assert int(group) > 0
    after_user = final.instructions[[i.keyword for i in final.instructions].index("USER") :]
    assert not [i for i in after_user if i.keyword in {"RUN", "COPY", "ADD"}]


def test_fetches_nothing_by_address(stages: list[Stage]) -> None:
    for stage in stages:
        assert stage.every("ADD") == []
        for instruction in stage.instructions:
            assert "://" not in instruction.arguments
            assert not re.search(r"\b(curl|wget|git clone|apt-get)\b", instruction.arguments)


def pip_commands(stage: Stage) -> list[str]:
    """Every pip command of the stage's RUN instructions."""
    commands = [part.strip() for run in stage.every("RUN") for part in re.split(r"&&|;|\|", run)]
    return [command for command in commands if re.match(r"(\S*/)?(python\S* -m )?pip\d* ", command)]


def test_every_installation_is_checked_by_hash_or_offline(stages: list[Stage]) -> None:
    commands = [command for stage in stages for command in pip_commands(stage)]
    assert commands
    for command in commands:
        assert "--require-hashes" in command or {"--no-index", "--no-deps"} <= set(command.split()), command


def test_runtime_dependencies_come_from_the_lock(stages: list[Stage]) -> None:
    assert any("--require-hashes" in c and "-r requirements.lock" in c for c in pip_commands(stages[0]))


def test_no_pip_is_left(final: Stage) -> None:
    assert pip_commands(final) == []
    removed = " ".join(run for run in final.every("RUN") if run.startswith("rm -rf"))
    for part in ("site-packages/pip ", "ensurepip ", "/usr/local/bin/pip*"):
        assert part in removed


def test_asks_the_sidecar_for_its_health(final: Stage) -> None:
    options, _, command = final.only("HEALTHCHECK").partition("CMD ")
    assert json.loads(command) == ["sidecar", "health"]
    for option in ("--interval=", "--timeout=", "--start-period=", "--retries="):
        assert option in options


def test_entry_is_exec_form_and_ports_are_the_three_edges(final: Stage) -> None:
    assert json.loads(final.only("ENTRYPOINT")) == ["sidecar"]
    assert json.loads(final.only("CMD")) == ["serve"]
    assert final.only("EXPOSE").split() == ["8080", "50051", "8081"]


def test_writes_only_to_its_volume(final: Stage) -> None:
    assert json.loads(final.only("VOLUME")) == [final.only("WORKDIR")]
    assert "PYTHONDONTWRITEBYTECODE=1" in final.only("ENV")


def test_carries_no_secret_and_no_listener(stages: list[Stage]) -> None:
    for stage in stages:
        for setting in stage.every("ENV") + stage.every("ARG"):
            assert not re.search(r"TOKEN|SECRET|PASSWORD|KEY|SIDECAR_", setting)


def test_copied_paths_pass_the_ignore_file(stages: list[Stage]) -> None:
    ignore = IgnoreFile((ROOT / ".dockerignore").read_text(encoding="utf-8"))
    copied = [source for copy in stages[0].every("COPY") for source in copy.split()[:-1]]
    assert copied
    for source in copied:
        assert ignore.files(ROOT, source), source
        assert not [path for path in ignore.files(ROOT, source) if path.suffix == ".pyc"]


@pytest.mark.parametrize(
    "path", [".git/config", ".venv/bin/python", "tests/conftest.py", "docs/api.md", "examples/x.py"]
)
def test_what_the_image_is_not_built_from_stays_outside(path: str) -> None:
    assert not IgnoreFile((ROOT / ".dockerignore").read_text(encoding="utf-8")).admits(PurePath(path))


def test_the_last_pattern_that_fits_decides() -> None:
    ignore = IgnoreFile("# all but two folders\n*\n!a\n!b/c\n**/*.py[cod]\n")
    admitted = ["a/x.py", "a/deep/y", "b/c/z"]
    refused = ["x", "b/x", "a/x.pyc", "b/c/deep/x.pyo"]
    assert [path for path in admitted + refused if ignore.admits(PurePath(path))] == admitted
