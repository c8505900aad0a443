"""ws-sidecar-client installs without the server and beside it, as a wheel and editable, and carries what it should."""

from __future__ import annotations

import asyncio
import re
import sys
import tarfile
import zipfile
from collections.abc import Callable
from email import message_from_string
from pathlib import Path

import pytest

from tests.integration.test_packaging import (
    IMPORT_API,
    IMPORT_BOTH,
    PROJECTS,
    ROOT,
    Environment,
    build,
    dependencies,
    files_of,
    make_environment,
    run,
)
from tests.support.running import RunningSidecar

__all__ = ["dependencies", "make_environment"]

CLIENT = ROOT / "clients" / "python"
SOURCES = CLIENT / "sidecar_client"
USE = """
import asyncio, sidecar_client
from importlib.metadata import version
assert sidecar_client.__version__ == version("ws-sidecar-client") == "0.1.0"
assert all(hasattr(sidecar_client, name) for name in sidecar_client.__all__)
with sidecar_client.SidecarClient() as client:
    pass
connection = sidecar_client.connect("ws://127.0.0.1:1/v1/connect", token="t")
"""
WITHOUT_SERVER = USE + "import sidecar\nassert sidecar.__file__ is None\n"


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("archives")
    return {
        "client": build("build_wheel", CLIENT, folder / "client"),
        "editable client": build("build_editable", CLIENT, folder / "editable"),
        "api": build("build_wheel", PROJECTS["api"], folder / "api"),
        "server": build("build_wheel", PROJECTS["server"], folder / "server"),
    }


@pytest.mark.parametrize("client", ["client", "editable client"])
def test_alone_and_beside_the_server(
    client: str, archives: dict[str, Path], make_environment: Callable[[], Environment]
) -> None:
    environment = make_environment()
    environment.install(archives["api"], archives[client])
    environment.succeeds(WITHOUT_SERVER + IMPORT_API)
    environment.install(archives["server"])
    environment.succeeds(USE + IMPORT_BOTH)
    environment.uninstall("ws-sidecar")
    environment.succeeds(WITHOUT_SERVER)
    environment.install(archives["server"])
    environment.uninstall("ws-sidecar-client")
    environment.succeeds(IMPORT_BOTH)


def test_the_wheel_holds_the_package_and_nothing_else(archives: dict[str, Path]) -> None:
    files = {name for name in files_of(archives["client"]) if ".dist-info/" not in name}
    assert files == {f"sidecar_client/{path.name}" for path in SOURCES.iterdir() if path.is_file()}
    assert "sidecar_client/py.typed" in files


def test_what_it_needs_is_what_it_imports(archives: dict[str, Path]) -> None:
    with zipfile.ZipFile(archives["client"]) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith("/METADATA")]
        metadata = message_from_string(wheel.read(name).decode())
    asked = metadata.get_all("Requires-Dist", [])
    needed = {re.split("[<>=]", each)[0] for each in asked if "extra ==" not in each}
    assert needed == {
        "ws-sidecar-api",
        "googleapis-common-protos",
        "grpcio",
        "grpcio-status",
        "protobuf",
        "websockets",
    }
    text = "".join(path.read_text(encoding="utf-8") for path in SOURCES.glob("*.py"))
    for foreign in ("from sidecar.core", "from sidecar.ws", "grpc_health", "orjson", "from tests"):
        assert foreign not in text


def test_the_source_archive_builds_the_same_wheel(archives: dict[str, Path], tmp_path: Path) -> None:
    source = build("build_sdist", CLIENT, tmp_path / "sdist")
    with tarfile.open(source) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (project,) = (tmp_path / "source").iterdir()
    rebuilt = build("build_wheel", project, tmp_path / "rebuilt")
    assert rebuilt.read_bytes() == archives["client"].read_bytes()


async def test_what_is_built_sends_from_an_empty_project(
    sidecar: RunningSidecar, tmp_path: Path, make_environment: Callable[[], Environment]
) -> None:
    """`python -m build`, as who publishes it does (PEP 517); without isolation, so that nothing is fetched for it."""
    for project in (PROJECTS["api"], CLIENT):
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path / "dist", project)
    environment = make_environment()
    environment.install(*(tmp_path / "dist").glob("*.whl"))
    async with sidecar.user("alice") as alice:
        arguments = repr((alice.isolation_key, alice.context_token))
        await asyncio.to_thread(
            environment.succeeds,
            "from sidecar_client import SidecarClient\n"
            f"with SidecarClient(endpoint={sidecar.grpc_target!r}) as client:\n"
            f"    assert client.send_to_user(*{arguments}, json='installed').sequence == 1\n",
        )
        assert (await alice.frame())["data"] == "installed"


def test_it_carries_the_licence() -> None:
    assert (CLIENT / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
