"""What the developers' environment adds is not there for the sidecar that is measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.as_installed import Absent, packages_beyond

ROOT = Path(__file__).resolve().parents[2]


def test_what_the_lock_file_has_stays_and_what_it_has_not_goes() -> None:
    beyond = packages_beyond(ROOT / "requirements.lock")
    assert {"pytest", "hypothesis", "mypy", "yaml"} <= beyond
    assert not beyond & {"sidecar", "grpc", "google", "websockets", "cryptography", "pydantic_settings"}


def test_a_package_that_is_absent_cannot_be_imported_in_part_either() -> None:
    absent = Absent(frozenset({"rich"}))
    for name in ("rich", "rich.traceback"):
        with pytest.raises(ModuleNotFoundError) as found:
            absent.find_spec(name, None)
        assert found.value.name == name
    assert absent.find_spec("richer", None) is None


def test_the_sidecar_runs_without_them() -> None:
    names = ",".join(packages_beyond(ROOT / "requirements.lock"))
    command = [sys.executable, "-W", "error", "-m", "benchmarks.as_installed", names, "version"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout
