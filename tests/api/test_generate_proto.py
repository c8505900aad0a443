"""scripts/generate_proto.py: what it compares, and what it says where a tool is absent; `make check` runs the rest."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "generate_proto.py"


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_proto", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def folder_with(path: Path, **stubs: str) -> Path:
    path.mkdir()
    for name, text in stubs.items():
        (path / f"{name}.py").write_text(text, encoding="utf-8")
    return path


def test_differences_names_each_kind_and_leaves_hand_written_files_alone(script: ModuleType, tmp_path: Path) -> None:
    generated = folder_with(tmp_path / "generated", same_pb2="1", changed_pb2="1", new_pb2_grpc="1")
    present = folder_with(tmp_path / "present", same_pb2="1", changed_pb2="2", old_pb2="1", __init__="hand-written")
    assert script.differences(generated, present) == {
        "changed_pb2.py": "differs",
        "new_pb2_grpc.py": "missing",
        "old_pb2.py": "extra",
    }


@pytest.mark.parametrize(("environment", "code"), [({}, 0), ({"CI": "true"}, 1)])
def test_lint_without_npm_is_skipped_by_name_but_fails_in_continuous_integration(
    environment: dict[str, str], code: int, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--lint"],
        env={"PATH": str(tmp_path), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "skipped: buf lint (no npm)\n"
    assert done.returncode == code


@pytest.mark.parametrize("name", ["proto-requirements.txt", "proto-requirements.in", "buf/package-lock.json"])
def test_no_pin_names_a_host(name: str) -> None:
    text = (ROOT / "scripts" / name).read_text(encoding="utf-8")
    assert "://" not in text
    assert "resolved" not in text


def test_every_python_pin_has_its_hash() -> None:
    text = (ROOT / "scripts" / "proto-requirements.txt").read_text(encoding="utf-8")
    pins = re.split(r"\n(?=[a-z])", text.strip())
    assert "grpcio-tools==1.71.2" in text
    assert all("==" in pin and "--hash=sha256:" in pin for pin in pins)


def test_every_npm_pin_has_its_hash() -> None:
    lock = json.loads((ROOT / "scripts" / "buf" / "package-lock.json").read_text(encoding="utf-8"))
    pins = [package for name, package in lock["packages"].items() if name]
    assert pins
    assert all(package["integrity"].startswith("sha512-") for package in pins)
