"""Maven and the JDK, as the tests of the Java client call them."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[3]
JAVA: Final = ROOT / "clients" / "java"
LIBRARIES: Final = JAVA / "conformance" / "target" / "lib"
"""The client's jar, and all that it needs."""
FAST_START: Final = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
LOCAL_REPOSITORY: Final = Path.home() / ".m2" / "repository"


def maven(*words: str, pom: Path) -> None:
    """Run it; what it says is in the failure."""
    # In the client's folder, for .mvn/jvm.config.
    run("mvn", "--quiet", "--batch-mode", "--file", str(pom), *words, folder=JAVA)


def run(*command: str, folder: Path, environment: dict[str, str] | None = None) -> str:
    """What it printed. Fails with that where it does."""
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout[-8_000:]}\n{done.stderr[-8_000:]}"
    return done.stdout


def compiled(folder: Path) -> str:
    """Compile the folder's sources against the client; the class path to run them with."""
    sources = [str(path) for path in sorted(folder.glob("*.java"))]
    javac = [f"-J{option}" for option in FAST_START]
    run("javac", *javac, "-Xlint:all", "-Werror", "-cp", f"{LIBRARIES}/*", "-d", str(folder), *sources, folder=folder)
    return f"{folder}:{LIBRARIES}/*"


def repository_beside(folder: Path) -> Path:
    """A local repository of its own, which has what was downloaded before and nothing of this project's."""
    made = folder / "repository"
    _link(LOCAL_REPOSITORY, made, but="dev")
    _link(LOCAL_REPOSITORY / "dev", made / "dev", but="wssidecar")
    return made


def _link(origin: Path, made: Path, *, but: str) -> None:
    made.mkdir()
    for each in origin.iterdir() if origin.exists() else ():
        if each.name != but:
            (made / each.name).symlink_to(each)
