"""What a Dockerfile builds and runs, without an engine: its steps below a folder that stands for the image's root.

No step is given to a shell: the few programs that the Dockerfile uses are known here, and what they are told to write
or remove is put below that folder first. Anything else is refused, so that no new step is left out without a word.
"""

from __future__ import annotations

import glob
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.dockerfile import IgnoreFile, Stage

BASE_PATH = "/usr/local/bin"
FACTS = {"ARG", "LABEL", "VOLUME", "USER", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
"""They say how the container is run, and change no file."""
_NOT_REACHED = ("No matching distribution found", "Could not fetch URL", "connection broken", "Max retries exceeded")
_HASHES_DIFFER = "DO NOT MATCH THE HASHES"


class OutOfReach(Exception):
    """The package index does not answer, or not with these wheels."""


class Image:
    """The root of an image: its files, its variables, its working folder."""

    def __init__(self, root: Path, context: Path) -> None:
        self.root = root
        self.environment: dict[str, str] = {}
        self._context = context
        self._ignore = IgnoreFile((context / ".dockerignore").read_text(encoding="utf-8"))
        self._left = root.with_name("earlier-stages")
        self._folder = Path("/")
        self._stage = Stage("", [])

    def build(self, stages: list[Stage]) -> None:
        """Do the steps of every stage. Raises OutOfReach when the wheels cannot be had."""
        steps = {"FROM": self._from, "ENV": self._env, "WORKDIR": self._workdir, "COPY": self._copy, "RUN": self._run}
        for self._stage in stages:
            for keyword, arguments in self._stage.instructions:
                assert keyword in steps or keyword in FACTS, f"{keyword} is not known here"
                if keyword in steps:
                    steps[keyword](arguments)

    def fact(self, keyword: str) -> str:
        """What the last stage says, of which there is one."""
        return self._stage.only(keyword)

    def command(self, keyword: str) -> list[str]:
        """A command in exec form: that of ENTRYPOINT, CMD, or of HEALTHCHECK after its options."""
        arguments = self.fact(keyword)
        words = json.loads(arguments[arguments.index("[") :])
        assert all(isinstance(word, str) for word in words)
        return list(words)

    def path(self, inside: str | Path) -> Path:
        """Where a path of the image is; a relative one is below the working folder."""
        return self.root / (self._folder / inside).relative_to("/")

    # The steps

    def _from(self, _base: str) -> None:
        """A fresh root with the base image's Python, pip in it; an earlier stage's is moved aside."""
        base = self.root.with_name("base")
        if self.root.exists():
            self.root.rename(self._left)
            base.rename(self.root)
        else:
            subprocess.run([sys.executable, "-m", "venv", self.root / "usr" / "local"], check=True, env=clean())
            shutil.copytree(self.root, base, symlinks=True)
        self.environment, self._folder = {"PATH": str(self.path(BASE_PATH))}, Path("/")

    def _env(self, arguments: str) -> None:
        for setting in shlex.split(arguments):
            name, _, value = setting.partition("=")
            before = self.environment.get(name, "")
            words = [str(self.path(word)) if word.startswith("/") else word for word in value.split(":")]
            self.environment[name] = ":".join(before if word == f"${name}" else word for word in words)

    def _workdir(self, arguments: str) -> None:
        self._folder /= arguments
        self.path(".").mkdir(parents=True, exist_ok=True)

    def _copy(self, arguments: str) -> None:
        *sources, target = arguments.split()
        if sources[0].startswith("--from="):
            assert sources[1:] == [target], "programs know where they were installed"
            self._carry_over(target)
            return
        for source in sources:
            for path in self._ignore.files(self._context, source):
                inside = Path(target) / (path.name if str(path) == source else path.relative_to(source))
                self.path(inside).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self._context / path, self.path(inside), follow_symlinks=False)

    def _carry_over(self, path: str) -> None:
        self.path(path).parent.mkdir(parents=True, exist_ok=True)
        (self._left / Path(path).relative_to("/")).rename(self.path(path))

    def _run(self, arguments: str) -> None:
        for command in arguments.split("&&"):
            name, *words = shlex.split(command)
            if name in {"pip", "python"}:
                self._call(name, [path for word in words for path in self._found(word)])
            elif name == "rm":
                assert words.pop(0) == "-rf"
                self._remove(words)
            else:
                assert name == "install", f"{name} is not known here"
                self._make_folder(words)

    def _found(self, word: str) -> list[str]:
        """A word of a command, below the root where it is a path of the image; its files where it is a pattern."""
        if not word.startswith("/"):
            return [word]
        return sorted(glob.glob(str(self.path(word)))) if "*" in word else [str(self.path(word))]

    def _call(self, name: str, words: list[str]) -> None:
        # The image's layers shall hold no cache; here the cache is the machine's own, and saves the downloads.
        settings = {name: value for name, value in self.environment.items() if name != "PIP_NO_CACHE_DIR"}
        done = subprocess.run(
            [name, *words], cwd=self.path("."), env=clean() | settings, capture_output=True, text=True, check=False
        )
        output = done.stdout + done.stderr
        if done.returncode and out_of_reach(output):
            raise OutOfReach(output)
        assert done.returncode == 0, output

    def _remove(self, words: list[str]) -> None:
        for word in words:
            for found in map(Path, self._found(word)):
                assert found.is_relative_to(self.root)
                if found.is_dir() and not found.is_symlink():
                    shutil.rmtree(found)
                else:
                    found.unlink(missing_ok=True)

    def _make_folder(self, words: list[str]) -> None:
        """`install -d -o UID -g GID -m MODE PATH`."""
        assert words[0] == "-d"
        options = dict(zip(words[1:-1:2], words[2:-1:2], strict=True))
        assert options.keys() == {"-o", "-g", "-m"}
        folder = self.path(words[-1])
        folder.mkdir(parents=True)
        folder.chmod(int(options["-m"], 8))
        if os.geteuid() == 0:
            os.chown(folder, int(options["-o"]), int(options["-g"]))


def clean() -> dict[str, str]:
    """This process's environment, without what leads other interpreters back to it or measures them."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COVERAGE", "VIRTUAL"))}


def out_of_reach(output: str) -> bool:
    """Whether pip failed because it had no wheels, not because they are others than the lock names."""
    return _HASHES_DIFFER not in output and any(sign in output for sign in _NOT_REACHED)
