"""What a step's values stand for, and whether an answer is what a step says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

ANY: Final = "$any"
ABSENT: Final = "$absent"
_NAME: Final = re.compile(r"\$(\w+(?:\.\w+)*)")


def fill(template: Any, names: Mapping[str, Any]) -> Any:
    """The template with values for its `$name.member`s and `{repeat: text, times: n}`s; ANY and ABSENT stay."""
    if isinstance(template, dict):
        if template.keys() == {"repeat", "times"}:
            return template["repeat"] * template["times"]
        return {name: fill(value, names) for name, value in template.items()}
    if isinstance(template, list):
        return [fill(value, names) for value in template]
    if isinstance(template, str) and template not in {ANY, ABSENT}:
        return _fill_text(template, names)
    return template


def _fill_text(text: str, names: Mapping[str, Any]) -> Any:
    whole = _NAME.fullmatch(text)
    if whole:
        return _look_up(whole[1], names)
    return _NAME.sub(lambda found: str(_look_up(found[1], names)), text)


def _look_up(path: str, names: Mapping[str, Any]) -> Any:
    found: Any = names
    for part in path.split("."):
        found = found[int(part) if isinstance(found, list) else part]
    return found


def mismatch(expected: Any, got: Any, where: str = "it") -> str:
    """What is not as expected, empty where everything is: an object may have more members, a list may not be longer."""
    if expected == ANY:
        return ""
    if isinstance(expected, dict) and isinstance(got, dict):
        return _first(_member(value, got, name, f"{where}.{name}") for name, value in expected.items())
    if isinstance(expected, list) and isinstance(got, list) and len(expected) == len(got):
        return _first(
            mismatch(one, other, f"{where}[{place}]")
            for place, (one, other) in enumerate(zip(expected, got, strict=True))
        )
    same = expected == got and isinstance(expected, bool) == isinstance(got, bool)
    return "" if same else f"{where} is {_short(got)} and not {_short(expected)}"


def _member(expected: Any, got: dict[str, Any], name: str, where: str) -> str:
    if expected == ABSENT:
        return f"{where} is {_short(got[name])} and should not be there" if name in got else ""
    return mismatch(expected, got[name], where) if name in got else f"{where} is missing"


def _first(found: Any) -> str:
    return next((text for text in found if text), "")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}… ({len(text)} characters)"
