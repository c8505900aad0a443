"""The image that the Dockerfile builds, run as its container would be: without an engine, and in one where there is."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from websockets.asyncio.client import connect

from tests.support.dockerfile import parse
from tests.support.image import Image, OutOfReach, out_of_reach

ROOT = Path(__file__).resolve().parents[2]
STOP_TIMEOUT_S = 30
WHERE = "/var/lib/sidecar"

pytestmark = pytest.mark.timeout(300)  # the wheels may have to be fetched first


class Container:
    """The programs of the built image, run as its user with nothing but its variables and the settings.

    Root is needed to be another user; then the tree is root's. Others run it as themselves, all write bits taken away.
    """

    def __init__(self, image: Image, ops_port: int) -> None:
        self.image = image
        volume = image.path(WHERE)
        key = image.path("/run/user.key")
        key.parent.mkdir(exist_ok=True)
        key.write_text("k" * 64)
        key.chmod(0o600)
        if os.geteuid() == 0:
            os.chown(key, *self._ids())
        else:
            seal(image.root, volume)
        self._environment = image.environment | {
            "SIDECAR_WEBSOCKET__LISTEN": "127.0.0.1:0",
            "SIDECAR_GRPC__LISTEN": "127.0.0.1:0",
            "SIDECAR_OPS__LISTEN": f"127.0.0.1:{ops_port}",
            "SIDECAR_USER_TOKENS__ISSUER": "https://id.test",
            "SIDECAR_USER_TOKENS__AUDIENCE": "chat",
            "SIDECAR_USER_TOKENS__KEY_FILE": str(key),
            "SIDECAR_CONTEXT_TOKENS__KEY_FILE": str(volume / "context-keys.json"),
            "SIDECAR_AUDIT__PATH": str(volume / "audit.jsonl"),
        }

    async def start(self, *command: str) -> asyncio.subprocess.Process:
        """Start one program, found in the image's own PATH."""
        folders = map(Path, self._environment["PATH"].split(":"))
        program = next(folder / command[0] for folder in folders if (folder / command[0]).exists())
        return await asyncio.create_subprocess_exec(
            *self._as_user(),
            program,
            *command[1:],
            cwd=self.image.path(self.image.fact("WORKDIR")),
            env=self._environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def run(self, *command: str) -> tuple[int | None, str]:
        """Run one program to its end: its exit code and what it wrote."""
        process = await self.start(*command)
        output, errors = await process.communicate()
        return process.returncode, (output + errors).decode().strip()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[tuple[asyncio.subprocess.Process, dict[str, str]]]:
        """The container's own command, past the line that says that it serves; killed if it is not stopped."""
        process = await self.start(*self.image.command("ENTRYPOINT"), *self.image.command("CMD"))
        assert process.stderr is not None
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                lines = [await process.stderr.readline()]
                while lines[-1] and b'"serving"' not in lines[-1]:
                    lines.append(await process.stderr.readline())
            assert lines[-1], lines
            yield process, json.loads(lines[-1])
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    def _ids(self) -> tuple[int, int]:
        user, _, group = self.image.fact("USER").partition(":")
        return int(user), int(group)

    def _as_user(self) -> list[str]:
        """The interpreter that the tests run on may lie where only root looks: it may be read, nothing else."""
        if os.geteuid() != 0:
            return []
        user, group = self._ids()
        readable = "-all,+dac_read_search"
        switches = [f"--reuid={user}", f"--regid={group}", "--clear-groups", "--no-new-privs"]
        setpriv = shutil.which("setpriv")
        assert setpriv is not None
        return [setpriv, *switches, f"--inh-caps={readable}", f"--ambient-caps={readable}"]


def seal(root: Path, volume: Path) -> None:
    """Take every write bit from the tree, but for the volume."""
    for path in [root, *root.rglob("*")]:
        if not path.is_symlink() and not path.is_relative_to(volume):
            path.chmod(path.stat().st_mode & ~0o222)


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """Built in a folder that its user may enter; pytest's own are closed to others."""
    with TemporaryDirectory(prefix="sidecar-image-") as folder:
        Path(folder).chmod(0o755)
        image = Image(Path(folder) / "root", ROOT)
        try:
            image.build(parse((ROOT / "Dockerfile").read_text(encoding="utf-8")))
        except OutOfReach as problem:
            pytest.skip(f"the image's wheels cannot be fetched: {str(problem)[-300:]}")
        yield image
        for path in Path(folder).rglob("*"):
            if path.is_dir() and not path.is_symlink():
                path.chmod(path.stat().st_mode | stat.S_IWUSR)  # or it could not be removed


@pytest.fixture(scope="module")
def container(image: Image) -> Container:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return Container(image, port)


def test_nothing_of_the_builder_is_left(image: Image) -> None:
    assert {path.name for path in image.root.iterdir()} <= {"opt", "usr", "var", "run"}
    (packages,) = image.path("/opt/sidecar").glob("lib/python3.*/site-packages")
    names = {path.name.partition("-")[0] for path in packages.iterdir()}
    assert {"sidecar", "ws_sidecar", "ws_sidecar_api", "grpc", "websockets", "uvloop"} <= names
    assert names.isdisjoint({"pip", "setuptools", "hatchling", "pytest", "coverage"})
    assert not list(image.path("/usr/local").glob("lib/python3.*/site-packages/pip*"))


def test_what_is_installed_is_what_the_lock_names(image: Image) -> None:
    (packages,) = image.path("/opt/sidecar").glob("lib/python3.*/site-packages")
    locked = (ROOT / "requirements.lock").read_text(encoding="utf-8").lower().replace("_", "-")
    for path in packages.glob("*.dist-info"):
        name, _, version = path.name.removesuffix(".dist-info").rpartition("-")
        if not name.startswith("ws_sidecar"):
            assert f"\n{name.lower().replace('_', '-')}=={version}" in f"\n{locked}"


def test_its_files_are_for_everybody_to_read_and_for_nobody_to_write(image: Image) -> None:
    for path in image.path("/opt").rglob("*"):
        if not path.is_symlink():
            mode = path.stat().st_mode
            assert mode & 0o022 == 0, path
            assert mode & 0o044 == 0o044, path
            assert path.is_file() or mode & 0o011 == 0o011, path
    facts = image.path(WHERE).stat()
    assert stat.S_IMODE(facts.st_mode) == 0o750
    assert os.geteuid() != 0 or (facts.st_uid, facts.st_gid) == (65532, 65532)


async def test_writes_nowhere_but_in_its_volume(container: Container) -> None:
    root, volume = container.image.path("/"), container.image.path(WHERE)
    for folder in (root, container.image.path("/opt/sidecar"), container.image.path("/usr/local/bin")):
        code, output = await container.run("python", "-c", f"open({str(folder / 'new')!r}, 'w')")
        assert code == 1
        assert "PermissionError" in output
    script = f"import os; open({str(volume / 'new')!r}, 'w'); os.unlink({str(volume / 'new')!r})"
    assert await container.run("python", "-c", script) == (0, "")


async def test_starts_serves_and_stops_as_its_container_would(container: Container) -> None:
    ask = container.image.command("HEALTHCHECK")
    assert await container.run(*ask) == (1, "not ready: no answer")
    async with container.serving() as (process, ports):
        assert await container.run(*ask) == (0, "ready")
        assert files_open_for_writing(process.pid) == {container.image.path(WHERE) / "audit.jsonl"}
        assert await greeted(container, int(ports["websocket"])) == "welcome"
        process.send_signal(signal.Signals[container.image.fact("STOPSIGNAL")])
        async with asyncio.timeout(STOP_TIMEOUT_S):
            _, errors = await process.communicate()
        assert process.returncode == 0, errors
    assert await container.run(*ask) == (1, "not ready: no answer")
    volume = container.image.path(WHERE)
    assert {path.name for path in volume.iterdir()} >= {"audit.jsonl", "context-keys.json"}
    code, output = await container.run("sidecar", "audit", "verify", str(volume / "audit.jsonl"))
    assert (code, output[:3]) == (0, "ok:"), output


async def greeted(container: Container, port: int) -> str:
    """The type of the first frame that a user gets, with a token that the image's own command minted."""
    code, token = await container.run("sidecar", "token", "user", "--sub", "alice")
    assert code == 0, token
    url, offered = f"ws://127.0.0.1:{port}/v1/connect", ["sidecar.v1.json"]
    async with asyncio.timeout(STOP_TIMEOUT_S), connect(url, subprotocols=offered) as user:  # type: ignore[arg-type]
        await user.send(json.dumps({"type": "hello", "token": token}))
        return str(json.loads(await user.recv())["type"])


def files_open_for_writing(pid: int) -> set[Path]:
    """The plain files that a process may write to, from what the kernel says of it."""
    found = set()
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        path = Path(f"/proc/{pid}/fd/{entry.name}").readlink()
        flags = int(entry.read_text().split("flags:")[1].split()[0], 8)
        if flags & os.O_ACCMODE != os.O_RDONLY and path.is_file():
            found.add(path)
    return found


@pytest.mark.parametrize(
    ("output", "missing"),
    [
        ("ERROR: No matching distribution found for aiohttp==3.14.0", True),
        ("WARNING: Retrying after connection broken by 'NewConnectionError'", True),
        ("connection broken\nERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", False),
        ("ERROR: hatchling.build: a folder is missing", False),
    ],
)
def test_only_an_index_out_of_reach_is_a_reason_to_skip(output: str, missing: bool) -> None:
    assert out_of_reach(output) is missing


# In an engine


def docker(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def done(process: subprocess.CompletedProcess[str]) -> str:
    """What it printed; it must have succeeded."""
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


@contextmanager
def built() -> Iterator[str]:
    """The real image's id; skips where there is no engine, or it cannot reach the base image."""
    if shutil.which("docker") is None or docker("info").returncode:
        pytest.skip("no container engine")
    base = next(line for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("ARG PYTHON_IMAGE="))
    if docker("pull", "--quiet", base.partition("=")[2]).returncode:
        pytest.skip("the base image cannot be fetched")
    yield done(docker("build", "--quiet", "."))


@contextmanager
def volume() -> Iterator[str]:
    """The option that mounts a volume where the image writes; an empty one takes on the owner of the image's folder."""
    name = done(docker("volume", "create"))
    yield f"--volume={name}:{WHERE}"
    docker("volume", "rm", name)


MAKE_KEY = f"import os; os.write(os.open('{WHERE}/user.key', os.O_WRONLY | os.O_CREAT, 0o600), b'k' * 64)"


@pytest.mark.stands_in("test_starts_serves_and_stops_as_its_container_would")
def test_runs_in_an_engine() -> None:
    with built() as image, volume() as mount:
        run = ("--read-only", "--network=none", mount)
        assert docker("run", "--rm", *run, "--entrypoint=python", image, "-c", MAKE_KEY).returncode == 0
        settings = {
            "USER_TOKENS__ISSUER": "https://id.test",
            "USER_TOKENS__AUDIENCE": "chat",
            "USER_TOKENS__KEY_FILE": f"{WHERE}/user.key",
            "AUDIT__PATH": f"{WHERE}/audit.jsonl",
        }
        container = done(
            docker("run", "--detach", *run, *(f"--env=SIDECAR_{n}={v}" for n, v in settings.items()), image)
        )
        try:
            await_serving(container)
            assert done(docker("exec", container, *health_check())) == "ready"
            assert done(docker("exec", container, "id", "-u")) == "65532"
            assert docker("exec", container, "touch", "/opt/sidecar/new").returncode != 0
            done(docker("stop", f"--time={STOP_TIMEOUT_S}", container))
            assert done(docker("inspect", "--format={{.State.ExitCode}}", container)) == "0"
        finally:
            docker("rm", "--force", container)


def health_check() -> list[str]:
    stages = parse((ROOT / "Dockerfile").read_text(encoding="utf-8"))
    return list(json.loads(stages[-1].only("HEALTHCHECK").partition("CMD ")[2]))


def await_serving(container: str) -> None:
    """Follow its log up to the line that says that it serves."""
    command = ["docker", "logs", "--follow", container]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as log:
        assert log.stderr is not None
        served = any('"serving"' in line for line in log.stderr)
        log.kill()
    assert served
