"""The clients that the list is played with: what each needs, how its runner is built and started."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from clients.conformance.runners import Runner
from scripts.clients import ROOT, build

SERVICE, USER = "service", "user"


@dataclass(frozen=True)
class Language:
    """One client. `tools`: the programs that it is built and run with; `command` starts its runner, in `folder`."""

    name: str
    sides: tuple[str, ...]
    tools: tuple[str, ...]
    command: tuple[str, ...]
    folder: Path
    builds: str = ""

    def __str__(self) -> str:
        return self.name

    @property
    def missing(self) -> str:
        """The first tool that this machine does not have, or nothing."""
        return next((tool for tool in self.tools if shutil.which(tool) is None), "")

    def start(self, errors: Path) -> Runner:
        """Its runner, built before if it has to be: once, whoever asks at the same time."""
        if self.builds:
            build(self.builds)
        return Runner(self.command, self.folder, errors)


_CLIENTS: Final = ROOT / "clients"
PYTHON: Final = Language("Python", (SERVICE, USER), (), (sys.executable, "-m", "conformance"), _CLIENTS / "python")
GO: Final = Language("Go", (SERVICE,), ("go",), (str(_CLIENTS / "go/build/bin/conformance"),), _CLIENTS / "go", "go")
NODE: Final = Language(
    "Node", (SERVICE,), ("node", "npm"), ("node", "build/conformance/main.js"), _CLIENTS / "node", "node"
)
JAVA: Final = Language(
    "Java",
    (SERVICE,),
    ("java", "javac", "mvn"),
    ("java", "-XX:+UseSerialGC", "-jar", "conformance/target/conformance.jar"),
    _CLIENTS / "java",
    "java",
)
WEB: Final = Language(
    "Web in Node", (USER,), ("node", "npm"), ("node", "build/conformance/runner.mjs"), _CLIENTS / "web", "web"
)
BROWSER: Final = Language(
    "Web in a browser",
    (USER,),
    ("node", "npm", "chromium"),
    (sys.executable, "-m", "clients.conformance.in_browser"),
    ROOT,
    "web",
)
LANGUAGES: Final = (PYTHON, GO, NODE, JAVA, WEB, BROWSER)
