"""Go programs for tests: built with the client as it is here, or as it is installed from its module's archive."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import zipfile
from pathlib import Path
from typing import Final

from tests.support.tools import lacking

ROOT: Final = Path(__file__).resolve().parents[3]
CLIENT: Final = ROOT / "clients" / "go"
MODULE: Final = "ws-sidecar.dev/client"
GO: Final = shutil.which("go")


def go(folder: Path, *words: str, **environment: str) -> str:
    """Run the go command; what it printed. A failure shows what it said."""
    if GO is None:
        lacking("go")
    done = subprocess.run(
        [GO, *words], cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"go {' '.join(words)}: {done.stdout}{done.stderr}"
    return done.stdout


def build(folder: Path, program: Path) -> Path:
    """Build the program in that folder; its path."""
    go(folder, "build", "-o", str(program), ".")
    return program


def beside(folder: Path, name: str, files: dict[str, str]) -> Path:
    """A module of that name with these files, which uses the client of this checkout."""
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    requirements = (CLIENT / "go.mod").read_text(encoding="utf-8").partition("\n")[2]
    own = f"require {MODULE} v0.1.0\nreplace {MODULE} => {CLIENT}\n"
    (folder / "go.mod").write_text(f"module {name}\n{requirements}{own}", encoding="utf-8")
    shutil.copyfile(CLIENT / "go.sum", folder / "go.sum")
    return folder


class Published:
    """The module's archive in a folder that serves as a proxy (go help goproxy), under a version of its own content."""

    def __init__(self, proxy: Path) -> None:
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=CLIENT,
            capture_output=True,
            text=True,
            check=True,
        )
        # A folder with a go.mod of its own is another module (go.dev/ref/mod#zip-files).
        self.files = sorted(name for name in listed.stdout.splitlines() if not name.startswith("tools/"))
        digest = hashlib.sha256(b"".join((CLIENT / name).read_bytes() for name in self.files)).hexdigest()
        self.version = f"v0.1.0-test.{digest[:16]}x"
        self.environment = {
            "GOPROXY": f"{proxy.as_uri()},{go(CLIENT, 'env', 'GOPROXY').strip()}",
            "GONOSUMDB": MODULE,
            "GOFLAGS": "-mod=mod",
        }
        folder = proxy / MODULE / "@v"
        folder.mkdir(parents=True)
        (folder / f"{self.version}.info").write_text(f'{{"Version":"{self.version}"}}', encoding="ascii")
        shutil.copyfile(CLIENT / "go.mod", folder / f"{self.version}.mod")
        with zipfile.ZipFile(folder / f"{self.version}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name in self.files:
                archive.write(CLIENT / name, f"{MODULE}@{self.version}/{name}")

    def forget(self) -> None:
        """Take it out of the module cache again, where it is read-only."""
        cache = Path(go(CLIENT, "env", "GOMODCACHE").strip())
        installed = cache / f"{MODULE}@{self.version}"
        for path in [installed, *installed.rglob("*")]:
            if path.is_dir():
                path.chmod(path.stat().st_mode | stat.S_IWUSR)
        shutil.rmtree(installed, ignore_errors=True)
        for path in (cache / "cache" / "download" / MODULE / "@v").glob(f"{self.version}.*"):
            path.unlink()
