"""What a machine may lack, and what a test says then."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def lacking(what: str) -> NoReturn:
    """Skip by name; fail where nothing may be skipped."""
    if os.environ.get("SIDECAR_TEST_NO_SKIP") == "1":
        pytest.fail(f"{what} is missing")
    pytest.skip(f"{what} is missing")
