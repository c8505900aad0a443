"""Generates sidecar/api from proto/; --check compares and imports them, --lint runs buf over the contract.

Only the standard library is imported: the generators live in .venv-proto, which this script builds from
scripts/proto-requirements.txt, and buf in build/buf, which npm fills from scripts/buf. Both are pinned by hash.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
STUBS = Path("sidecar/api/v1")
REQUIREMENTS = ROOT / "scripts" / "proto-requirements.txt"
ENVIRONMENT = ROOT / ".venv-proto"
PYTHON = ENVIRONMENT / "bin" / "python"
INSTALL_TRIES = 3
GOOGLEAPIS = ROOT / "build" / "googleapis"
BUF_SOURCE = ROOT / "scripts" / "buf"
BUF = ROOT / "build" / "buf"

Command = list[str | Path]


class Failed(Exception):
    """The run cannot go on; the text is for the developer."""


def main() -> int:
    """Do what the command line says; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="write nothing; exit 1 where the stubs are not current")
    mode.add_argument("--lint", action="store_true", help="run buf lint and buf format; skipped where npm is absent")
    arguments = parser.parse_args()
    try:
        if arguments.lint:
            return lint()
        with tempfile.TemporaryDirectory() as folder:
            generated = generate(Path(folder))
            return check(generated) if arguments.check else write(generated)
    except Failed as error:
        print(error, file=sys.stderr)
        return 1


# Generating


def generate(folder: Path) -> Path:
    """Generate every stub below `folder`; returns where they are."""
    prepare_environment()
    prepare_googleapis()
    plugins = [f"--plugin={name}={ENVIRONMENT / 'bin' / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
    protos = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))
    services = [proto for proto in protos if proto.endswith("_service.proto")]
    protoc: Command = [PYTHON, "-m", "grpc_tools.protoc", f"-I{PROTO}", f"-I{GOOGLEAPIS}", *plugins]
    run([*protoc, f"--python_out={folder}", f"--mypy_out=quiet:{folder}", *protos])
    run([*protoc, f"--grpc_python_out={folder}", f"--mypy_grpc_out=quiet:{folder}", *services])
    return folder / STUBS


def write(generated: Path) -> int:
    """Make the tree's stubs those of `generated`, touching only what differs."""
    for name in differences(generated, ROOT / STUBS):
        source, target = generated / name, ROOT / STUBS / name
        if source.exists():
            shutil.copyfile(source, target)
            print(f"wrote {STUBS / name}")
        else:
            target.unlink()
            print(f"removed {STUBS / name}")
    return 0


def check(generated: Path) -> int:
    """Name the tree's stubs that are not those of `generated`; returns the exit code.

    Stubs that are current are imported here too, on the oldest protobuf and grpcio that they are for; the test suite
    imports them on the newest.
    """
    found = differences(generated, ROOT / STUBS)
    for name, kind in found.items():
        print(f"{kind}: {STUBS / name}", file=sys.stderr)
    if found:
        print("sidecar/api is not what proto/ generates: run python scripts/generate_proto.py", file=sys.stderr)
        return 1
    modules = sorted(path.stem for path in generated.glob("*_pb2*.py"))
    run([PYTHON, "-B", "-W", "error", "-c", "\n".join(f"import sidecar.api.v1.{module}" for module in modules)])
    return 0


def differences(generated: Path, present: Path) -> dict[str, str]:
    """The stubs that differ, are missing from `present` or are there in excess: the kind by file name, sorted."""
    names = {path.name for folder in (generated, present) for path in folder.glob("*_pb2*.py*")}
    kinds = {name: difference(generated / name, present / name) for name in sorted(names)}
    return {name: kind for name, kind in kinds.items() if kind}


def difference(generated: Path, present: Path) -> str:
    """How the one file stands to the other; empty where they are alike."""
    if not present.exists():
        return "missing"
    if not generated.exists():
        return "extra"
    return "" if generated.read_bytes() == present.read_bytes() else "differs"


# Linting


def lint() -> int:
    """Run buf over proto/; without npm that is skipped by name, but in continuous integration it fails."""
    npm = shutil.which("npm")
    if npm is None:
        return skip("no npm")
    prepare_environment()
    prepare_googleapis()
    buf = prepare_buf(npm)
    if buf is None:
        return skip("npm could not fetch it, or has none for this platform")
    for command in (["lint"], ["format", "--diff", "--exit-code", "proto"]):
        if subprocess.run([buf, *command], cwd=ROOT, check=False).returncode:
            raise Failed(f"buf {command[0]}: the contract does not pass")
    return 0


def skip(why: str) -> int:
    """Say what is not run, and why; returns the exit code."""
    print(f"skipped: buf lint ({why})")
    return 1 if os.environ.get("CI") == "true" else 0


# What the above needs


def prepare_environment() -> None:
    """Build .venv-proto, unless it is already what the requirements say."""

    def install() -> None:
        print("building .venv-proto", file=sys.stderr)
        run([sys.executable, "-m", "venv", "--clear", ENVIRONMENT])
        pip: Command = [PYTHON, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--quiet"]
        run([*pip, "--require-hashes", "--only-binary", ":all:", "-r", REQUIREMENTS])

    once(ENVIRONMENT / ".requirements", [REQUIREMENTS], install)


def prepare_googleapis() -> None:
    """Copy the google/rpc files of the installed googleapis-common-protos to where protoc and buf find them."""
    command: Command = [PYTHON, "-c", "import google.rpc; print(*google.rpc.__path__)"]
    installed = Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())
    target = GOOGLEAPIS / "google" / "rpc"
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(installed / "status.proto", target / "status.proto")


def prepare_buf(npm: str) -> Path | None:
    """Install buf into build/buf, unless it is already what the lock says; returns the program, if there is one."""
    files = [BUF_SOURCE / name for name in ("package.json", "package-lock.json", ".npmrc")]

    def install() -> None:
        BUF.mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copyfile(file, BUF / file.name)
        # In its folder, not with --prefix: npm would look for the machine's own npmrc below that.
        run([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], cwd=BUF, quiet=True)

    stamp = BUF / ".installed"
    for _ in range(INSTALL_TRIES):
        once(stamp, files, install)
        if programs := sorted(BUF.glob("node_modules/@bufbuild/buf-*/bin/buf")):
            return programs[0]
        stamp.unlink()  # npm passes over an optional package that it could not fetch, and calls it a success
    return None


def once(stamp: Path, inputs: list[Path], install: Callable[[], None]) -> None:
    """Run `install` unless `stamp` says that it succeeded with these very inputs."""
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in inputs)).hexdigest()
    if not stamp.exists() or stamp.read_text(encoding="ascii") != digest:
        install()
        stamp.write_text(digest, encoding="ascii")


def run(command: Command, *, cwd: Path = ROOT, quiet: bool = False) -> None:
    """Run one program in the checkout; raises Failed where it does not succeed. `quiet` drops its standard output."""
    try:
        subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.DEVNULL if quiet else None)
    except subprocess.CalledProcessError as error:
        raise Failed(f"{Path(command[0]).name} ended with {error.returncode}") from None


if __name__ == "__main__":
    sys.exit(main())
