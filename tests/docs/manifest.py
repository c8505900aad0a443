"""Reads the YAML that a page's manifest is written in: a small and strict part of it, anything else is an error.

Block mappings and sequences, lists of strings in brackets, literal blocks, plain and quoted scalars, comments.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final, NamedTuple

_KEY: Final = re.compile(r"([A-Za-z][\w.]*):(?: +(.*))?")
_PLAIN: Final = re.compile(r"[A-Za-z/][\w./:-]*|[1-9]\d*[KMG]i")
_NUMBERS: Final = {r"0|[1-9]\d*": 10, r"0[0-7]+": 8}


class _Line(NamedTuple):
    indent: int
    text: str


def documents(text: str) -> list[dict[str, Any]]:
    """Every document, in order. Raises ValueError for what is none."""
    return [_Reader(document).whole() for document in re.split(r"^---\n", text, flags=re.MULTILINE)]


class _Reader:
    def __init__(self, text: str) -> None:
        self._lines = [_Line(len(line) - len(line.lstrip(" ")), line.strip(" ")) for line in text.splitlines()]
        self._at = 0

    def whole(self) -> dict[str, Any]:
        value = self._block(0)
        if self._at < len(self._lines) or not isinstance(value, dict):
            raise ValueError(f"line {self._at + 1}: {self._lines[self._at :][:1]}")
        return value

    def _is_at(self, indent: int) -> bool:
        return self._at < len(self._lines) and self._lines[self._at].indent == indent

    def _block(self, indent: int) -> Any:
        if not self._is_at(indent):
            raise ValueError(f"line {self._at + 1}: nothing here")
        return self._sequence(indent) if self._lines[self._at].text.startswith("- ") else self._mapping(indent)

    def _sequence(self, indent: int) -> list[Any]:
        items = []
        while self._is_at(indent) and self._lines[self._at].text.startswith("- "):
            self._lines[self._at] = _Line(indent + 2, self._lines[self._at].text[2:])
            items.append(self._mapping(indent + 2))
        return items

    def _mapping(self, indent: int) -> dict[str, Any]:
        members: dict[str, Any] = {}
        while self._is_at(indent) and not self._lines[self._at].text.startswith("- "):
            match = _KEY.fullmatch(self._lines[self._at].text)
            if match is None or match[1] in members:
                raise ValueError(f"line {self._at + 1}: {self._lines[self._at].text}")
            self._at += 1
            members[match[1]] = self._value(match[2] or "", indent)
        return members

    def _value(self, text: str, indent: int) -> Any:
        if text == "|":
            return self._literal(indent + 2)
        plain = re.sub(r" +#.*$", "", text)
        return _scalar(plain) if plain else self._block(indent + 2)

    def _literal(self, indent: int) -> str:
        lines = []
        for line in self._lines[self._at :]:
            if line.text and line.indent < indent:
                break
            lines.append(" " * (line.indent - indent) + line.text if line.text else "")
            self._at += 1
        return "\n".join(lines).rstrip("\n") + "\n"


def _scalar(text: str) -> Any:
    if text.startswith(('"', "[")):
        return json.loads(text)
    if text in {"true", "false"}:
        return text == "true"
    for pattern, base in _NUMBERS.items():
        if re.fullmatch(pattern, text):
            return int(text, base)
    if not _PLAIN.fullmatch(text):
        raise ValueError(text)
    return text
