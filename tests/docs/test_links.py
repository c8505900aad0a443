"""Whatever a page names is there: other pages, anchors, files, settings with their defaults, make targets, commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any, Final

import click
import pytest
from pydantic import BaseModel

from sidecar.cli import main
from sidecar.config import Config
from tests.docs.pages import PAGES, ROOT, anchors, inline_code, links, make_targets, prose

SETTING: Final = re.compile(rf"({'|'.join(Config.model_fields)})\.([a-z_]+)")
VARIABLE: Final = re.compile(r"SIDECAR_([A-Z_]+?)__([A-Z_]+)")
DEFAULT: Final = re.compile(r"`(\w+)\.(\w+)`(?:\s\(|,\s)([\d,]+)(?:\s(s|min|minutes|h|KiB|MiB)\b)?")
UNITS: Final = {"": 1, "s": 1, "min": 60, "minutes": 60, "h": 3600, "KiB": 1024, "MiB": 1024**2}
FILES_OF_THE_PROJECT: Final = re.compile(
    r"(?:\.ci|docs|examples|packages|proto|scripts|sidecar|tests|benchmarks)/[\w./-]*"
)

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def section(name: str) -> type[BaseModel]:
    annotation: Any = Config.model_fields[name].annotation
    found = annotation if isinstance(annotation, type) else annotation.__args__[0]
    assert issubclass(found, BaseModel)
    return found


@pages
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_relative_to(ROOT), link
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@pages
def test_files_that_are_named_exist(page: Path) -> None:
    for code in inline_code(page):
        if FILES_OF_THE_PROJECT.fullmatch(code):
            assert (ROOT / code).exists(), code


@pages
def test_settings_that_are_named_exist(page: Path) -> None:
    for code in inline_code(page):
        if match := SETTING.fullmatch(code):
            assert match[2] in section(match[1]).model_fields, code
        if match := VARIABLE.fullmatch(code):
            assert match[2].lower() in section(match[1].lower()).model_fields, code


@pages
def test_defaults_that_are_told_are_the_defaults(page: Path) -> None:
    for name, key, number, unit in DEFAULT.findall(prose(page)):
        default = section(name).model_fields[key].default
        assert default == int(number.replace(",", "")) * UNITS[unit], f"{name}.{key}"


@pages
def test_commands_in_a_sentence_exist(page: Path) -> None:
    for code in inline_code(page):
        words = shlex.split(code) if re.match(r"(make|sidecar|\.venv/bin/sidecar) ", code) else []
        if words[:1] == ["make"]:
            assert words[1] in make_targets(), code
        elif words:
            is_a_command(words[1:], code)


def is_a_command(words: list[str], code: str) -> None:
    """Down the groups by name, then each option must be one of the command's."""
    command: click.Command = main
    for word in words:
        if isinstance(command, click.Group):
            assert word in command.commands, code
            command = command.commands[word]
        elif word.startswith("--"):
            assert any(word in parameter.opts for parameter in command.params), code
