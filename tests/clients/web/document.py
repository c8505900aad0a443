"""docs/asyncapi.yaml as the tests read it: a schema for each frame, by who says it."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml
from jsonschema import Draft7Validator

PATH: Final = Path(__file__).resolve().parents[3] / "docs" / "asyncapi.yaml"
DOCUMENT: Final[dict[str, Any]] = yaml.safe_load(PATH.read_text(encoding="utf-8"))
CLIENT, SIDECAR = "client", "sidecar"


def found(reference: dict[str, str]) -> Any:
    """What a `$ref` of the document's leads to, over as many as there are."""
    node: Any = reference
    while isinstance(node, dict) and "$ref" in node:
        path = node["$ref"]
        assert path.startswith("#/"), path
        node = DOCUMENT
        for part in path[2:].split("/"):
            node = node[part]
    return node


def references(node: Any = DOCUMENT) -> list[dict[str, str]]:
    """Every `$ref` of the document."""
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    inside = [reference for child in children for reference in references(child)]
    return [node, *inside] if isinstance(node, dict) and isinstance(node.get("$ref"), str) else inside


@cache
def frames() -> dict[tuple[str, str], Draft7Validator]:
    """Who says it and its type, of every operation of the JSON channel."""
    validators = {}
    for operation in DOCUMENT["operations"].values():
        if operation["channel"]["$ref"] != "#/channels/json":
            continue
        asks = operation["action"] == "receive"
        said = [(CLIENT if asks else SIDECAR, message) for message in operation["messages"]]
        said += [(SIDECAR, message) for message in operation.get("reply", {}).get("messages", ())]
        for who, message in said:
            schema = found(message)["payload"]
            validators[who, found(schema)["properties"]["type"]["const"]] = validator(schema)
    return validators


def validator(schema: dict[str, Any]) -> Draft7Validator:
    """Reads the document's own references."""
    return Draft7Validator({**schema, "components": DOCUMENT["components"]})


def check(who: str, frame: dict[str, Any]) -> None:
    """Fails for a frame that is not as the document says, or of no type that it names."""
    errors = [f"{error.json_path}: {error.message}" for error in frames()[who, frame["type"]].iter_errors(frame)]
    assert errors == [], f"{who} said {frame}"


def allowed(who: str, frame: dict[str, Any]) -> bool:
    key = who, frame.get("type")
    return key in frames() and frames()[key].is_valid(frame)


_FREE: Final = {"data", "headers"}
"""What a service or a client fills with what it likes."""


def mutants(frame: dict[str, Any]) -> list[dict[str, Any]]:
    """The frame with one thing wrong, in each way there is; members whose value is free are left alone."""
    wrong = [{**frame, "unheard_of": 1}]
    wrong += [{name: frame[name] for name in frame if name != lost} for lost in _needed(frame)]
    for name, value in frame.items():
        if name in _FREE:
            continue
        if isinstance(value, dict):
            wrong += [{**frame, name: inner} for inner in mutants(value)]
        wrong += [{**frame, name: other} for other in _other(value, whole=not name.endswith("_s"))]
    return deepcopy(wrong)


def _needed(frame: dict[str, Any]) -> set[str]:
    """Without one of its two names a cancel still says something; the other optional members may go."""
    optional = {"event", "critical", "reply_to", "stream", "headers", "duplicate", "resume", "mirror", "stream_id"}
    kind = frame.get("type")
    if kind in {"hello", "error", "cancel"}:
        optional |= {"token", "id"}
    return set(frame) - optional


def _other(value: Any, *, whole: bool) -> list[Any]:
    match value:
        case bool():
            return [not value, "true", None]
        case int() | float():
            return [-1, str(value), None, [value], 2**53] + ([value + 0.5] if whole else [])
        case str():
            return [1, None, "", f"{value} "]
        case _:
            return [1, None, []]
