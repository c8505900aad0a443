"""A Dockerfile and its .dockerignore, read as far as tests need."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path, PurePath
from typing import NamedTuple


class Instruction(NamedTuple):
    """One instruction of a stage: its keyword in capitals and the rest of its line, continuations joined."""

    keyword: str
    arguments: str


class Stage(NamedTuple):
    """A build stage: its name and its instructions, FROM first."""

    name: str
    instructions: list[Instruction]

    def every(self, keyword: str) -> list[str]:
        """The arguments of every instruction of that keyword, in order."""
        return [instruction.arguments for instruction in self.instructions if instruction.keyword == keyword]

    def only(self, keyword: str) -> str:
        """The arguments of the one instruction of that keyword."""
        (arguments,) = self.every(keyword)
        return arguments


def parse(text: str) -> list[Stage]:
    """Splits a Dockerfile into stages; comments and what precedes the first FROM are left out."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    stages: list[Stage] = []
    for line in re.sub(r"\\\n\s*", "", lines).splitlines():
        keyword, _, arguments = line.strip().partition(" ")
        if keyword.upper() == "FROM":
            stages.append(Stage(arguments.partition(" AS ")[2], []))
        if keyword and stages:
            stages[-1].instructions.append(Instruction(keyword.upper(), arguments.strip()))
    return stages


class IgnoreFile:
    """The patterns of a .dockerignore; the last that fits a path, or a folder above it, decides."""

    def __init__(self, text: str) -> None:
        lines = (line.strip() for line in text.splitlines())
        self._patterns = [line for line in lines if line and not line.startswith("#")]

    def admits(self, path: PurePath) -> bool:
        """Whether the build sees that path, which is relative to the context."""
        admitted = True
        for pattern in self._patterns:
            excluding = not pattern.startswith("!")
            if admitted is excluding and self._fits(path, pattern.removeprefix("!")):
                admitted = not excluding
        return admitted

    @staticmethod
    def _fits(path: PurePath, pattern: str) -> bool:
        anywhere = pattern.removeprefix("**/")
        if anywhere != pattern:
            return any(fnmatch(part, anywhere) for part in path.parts)
        return any(fnmatch(str(part), pattern) for part in (path, *path.parents[:-1]))

    def files(self, context: Path, source: str) -> list[PurePath]:
        """The files and links that a COPY of `source` takes, relative to the context; links are not followed."""
        start = context / source
        found = [start] if start.is_file() else sorted(start.rglob("*"))
        paths = [path for path in found if path.is_file() or path.is_symlink()]
        return [path for path in (path.relative_to(context) for path in paths) if self.admits(path)]
