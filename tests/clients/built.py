"""A client as its own tools build it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from scripts.clients import CLIENTS, build
from tests.support.tools import lacking


@cache
def built(name: str) -> Path:
    """The client's folder, built with its conformance runner. Skips by name where a tool is missing."""
    missing = CLIENTS[name].missing
    if missing:
        lacking(f"{missing}, for clients/{name},")
    return build(name)
