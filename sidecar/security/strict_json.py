"""JSON (RFC 8259) as tokens and key files need it: one object, no repeated member, no NaN, bounded depth."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Final, NoReturn

MAX_DEPTH: Final = 32


def parse_object(data: bytes) -> dict[str, object]:
    """The one object that `data` (UTF-8) holds. Raises ValueError for anything else, whatever went wrong."""
    try:
        value = _DECODER.decode(data.decode("utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("not an object")
    _check_depth(value)
    return value


def _check_depth(value: object) -> None:
    """Level by level, so that what is refused depends on the document alone and not on the caller's own stack."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for node in level for child in _members(node) if isinstance(child, dict | list)]
        if not level:
            return
    raise ValueError("nested too deeply")


def _members(node: object) -> Iterable[object]:
    return node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a repeated member")
    return members


def _refuse_constant(_name: str) -> NoReturn:
    raise ValueError("not a number")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_without_repeats, parse_constant=_refuse_constant)
