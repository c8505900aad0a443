"""ws-sidecar and ws-sidecar-api share the package `sidecar` and no file of it: wheels and editable installs mix."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECTS = {"api": ROOT / "packages" / "api", "server": ROOT}
NAMES = {"api": "ws-sidecar-api", "server": "ws-sidecar"}

IMPORT_API = """
from sidecar.api.v1 import admin_service_pb2_grpc, agent_service_pb2_grpc, context_service_pb2_grpc, error_reason_pb2
from sidecar.api.v1 import delivery_service_pb2 as pb, delivery_service_pb2_grpc
request = pb.SendToUserRequest(isolation_key="k")
assert pb.SendToUserRequest.FromString(request.SerializeToString()) == request
"""
IMPORT_SERVER = """
import sidecar
assert sidecar.__version__ == "0.1.0"
import sidecar.core.factory
"""
IMPORT_BOTH = IMPORT_SERVER + IMPORT_API + "import sidecar.rpc.translate\n"


def run(*command: str | Path, folder: Path | None = None) -> None:
    """Run one program to its end; what it printed is in the failure where it does not succeed."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 0, done.stdout + done.stderr


def environment() -> dict[str, str]:
    """This process's environment, without what would lead other interpreters back to it or to a package index."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COVERAGE", "PIP_"))}


def build(hook: str, project: Path, folder: Path) -> Path:
    """Build one archive with the project's backend, as an installer does (PEP 517, PEP 660)."""
    folder.mkdir(parents=True)
    code = f"import sys, hatchling.build; hatchling.build.{hook}(sys.argv[1])"
    run(sys.executable, "-c", code, folder, folder=project)
    (archive,) = folder.iterdir()
    return archive


def files_of(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


class Environment:
    """A bare virtual environment that sees everything installed here but the two distributions."""

    def __init__(self, folder: Path, dependencies: Path) -> None:
        run(sys.executable, "-m", "venv", "--without-pip", folder)
        self._python = folder / "bin" / "python"
        self._folder = folder
        (packages,) = folder.glob("lib/python*/site-packages")
        (packages / "dependencies.pth").write_text(f"{dependencies}\n", encoding="utf-8")

    def install(self, *wheels: Path) -> None:
        self._pip("install", "--no-deps", "--no-index", "--no-compile", *wheels)

    def uninstall(self, name: str) -> None:
        self._pip("uninstall", "--yes", name)

    def succeeds(self, code: str) -> None:
        """Assert that the code runs there, warnings being errors."""
        run(self._python, "-W", "error", "-c", code, folder=self._folder)

    def _pip(self, command: str, *arguments: str | Path) -> None:
        run(self._python, "-m", "pip", "--disable-pip-version-check", "--no-input", command, "--quiet", *arguments)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """The four archives by (distribution, wheel or editable)."""
    folder = tmp_path_factory.mktemp("wheels")
    return {
        (name, kind): build(f"build_{kind}", project, folder / name / kind)
        for name, project in PROJECTS.items()
        for kind in ("wheel", "editable")
    }


@pytest.fixture(scope="module")
def dependencies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that links what is installed here, but for the two distributions and what leads to the checkout."""
    folder = tmp_path_factory.mktemp("dependencies")
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith(("sidecar", "ws_sidecar")) and entry.suffix != ".pth":
            (folder / entry.name).symlink_to(entry)
    return folder


@pytest.fixture
def make_environment(tmp_path: Path, dependencies: Path) -> Callable[[], Environment]:
    return lambda: Environment(tmp_path / "environment", dependencies)


@pytest.mark.parametrize("server", ["wheel", "editable"])
@pytest.mark.parametrize("api", ["wheel", "editable"])
def test_every_mix_works_and_neither_takes_the_other_with_it(
    api: str,
    server: str,
    wheels: dict[tuple[str, str], Path],
    make_environment: Callable[[], Environment],
) -> None:
    environment = make_environment()
    environment.install(wheels["api", api], wheels["server", server])
    environment.succeeds(IMPORT_BOTH)
    environment.uninstall(NAMES["api"])
    environment.succeeds(IMPORT_SERVER)
    environment.install(wheels["api", api])
    environment.uninstall(NAMES["server"])
    environment.succeeds(IMPORT_API)


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_the_stubs_work_alone(
    kind: str, wheels: dict[tuple[str, str], Path], make_environment: Callable[[], Environment]
) -> None:
    environment = make_environment()
    environment.install(wheels["api", kind])
    environment.succeeds(IMPORT_API + "import sidecar\nassert sidecar.__file__ is None\n")


def test_no_file_has_two_owners(wheels: dict[tuple[str, str], Path]) -> None:
    api, server = files_of(wheels["api", "wheel"]), files_of(wheels["server", "wheel"])
    stubs = {f"sidecar/api/{path.relative_to(ROOT / 'sidecar' / 'api')}" for path in stub_files()}
    assert {name for name in api if not name.startswith("ws_sidecar_api-")} == stubs
    assert {"sidecar/api/py.typed", "sidecar/api/v1/types_pb2.pyi"} <= stubs
    assert "sidecar/__init__.py" in server
    assert not [name for name in server if name.startswith("sidecar/api")]


def test_the_server_carries_its_demo_page(wheels: dict[tuple[str, str], Path]) -> None:
    page = {f"sidecar/ops/static/{path.name}" for path in (ROOT / "sidecar" / "ops" / "static").iterdir()}
    assert "sidecar/ops/static/ws-sidecar.min.js" in page
    assert page <= files_of(wheels["server", "wheel"])


def stub_files() -> list[Path]:
    """The files of the checkout's sidecar/api, as they are to be shipped."""
    return [path for path in (ROOT / "sidecar" / "api").rglob("*") if path.is_file() and path.suffix != ".pyc"]


def test_the_stubs_are_built_alike_from_their_source_archive(
    wheels: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    source = build("build_sdist", PROJECTS["api"], tmp_path / "sdist")
    with tarfile.open(source) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (project,) = (tmp_path / "source").iterdir()
    rebuilt = build("build_wheel", project, tmp_path / "rebuilt")
    assert rebuilt.read_bytes() == wheels["api", "wheel"].read_bytes()


def test_the_stubs_carry_the_licence() -> None:
    assert (PROJECTS["api"] / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
