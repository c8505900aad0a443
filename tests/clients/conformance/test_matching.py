"""What the driver takes for an answer as it should be, and what not."""

from __future__ import annotations

from typing import Any

import pytest

from tests.clients.conformance.matching import fill, mismatch

NAMES = {"alice": {"isolation_key": "k", "list": [1, {"deep": 2}]}, "tenant": "t-1"}


@pytest.mark.parametrize(
    ("template", "filled"),
    [
        ("$alice.isolation_key", "k"),
        ("$alice.list.1.deep", 2),
        ("before $alice.isolation_key\nafter $tenant", "before k\nafter t-1"),
        ({"repeat": "ab", "times": 3}, "ababab"),
        ([{"a": "$tenant"}], [{"a": "t-1"}]),
        ("$any", "$any"),
        ("$absent", "$absent"),
        (1.5, 1.5),
    ],
)
def test_values_are_filled_in(template: Any, filled: Any) -> None:
    assert fill(template, NAMES) == filled


def test_a_name_that_nobody_gave_is_an_error() -> None:
    with pytest.raises(KeyError):
        fill("$bob.isolation_key", NAMES)


@pytest.mark.parametrize(
    ("expected", "got"),
    [
        ({}, {"more": 1}),
        ({"a": "$any"}, {"a": None}),
        ({"a": "$absent"}, {"b": 1}),
        ([{"a": 1}], [{"a": 1, "b": 2}]),
        ({"a": 1}, {"a": 1.0}),
        (None, None),
    ],
)
def test_what_is_as_it_should_be(expected: Any, got: Any) -> None:
    assert mismatch(expected, got) == ""


@pytest.mark.parametrize(
    ("expected", "got", "why"),
    [
        ({"a": 1}, {"a": 2}, "it.a is 2 and not 1"),
        ({"a": 1}, {}, "it.a is missing"),
        ({"a": "$absent"}, {"a": None}, "it.a is None and should not be there"),
        ([1, 2], [1], "it is [1] and not [1, 2]"),
        ([{"a": 1}], [{"a": 2}], "it[0].a is 2 and not 1"),
        ({"a": True}, {"a": 1}, "it.a is 1 and not True"),
        ({"a": 0}, {"a": False}, "it.a is False and not 0"),
        ({"a": {}}, {"a": []}, "it.a is [] and not {}"),
        ("", None, "it is None and not ''"),
    ],
)
def test_what_is_not(expected: Any, got: Any, why: str) -> None:
    assert mismatch(expected, got) == why
