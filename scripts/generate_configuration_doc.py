"""Writes docs/configuration.md from the settings of sidecar/config/; with --check only says whether it is current."""

from __future__ import annotations

import argparse
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Le, MaxLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from sidecar.config import ENVIRONMENT_PREFIX, Config

TARGET = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"

PREFACE = """\
# Configuration

Generated from `sidecar/config/` by `scripts/generate_configuration_doc.py`; do not edit.

`sidecar serve --config FILE` reads one TOML file of the sections below. Every key can come from the environment too, as
`SIDECAR_<SECTION>__<KEY>` (two underscores), and the environment beats the file. In the environment a list is JSON or
separated by commas, and a whole section may be one JSON object (`SIDECAR_LOG={"level":"debug"}`). Variables with the
prefix and without two underscores, such as the clients' `SIDECAR_GRPC_ENDPOINT` and `SIDECAR_SERVICE_TOKEN`, are not
looked at. Relative paths are relative to the working directory.

Times are seconds and end in `_s`; sizes are bytes.

A setting that cannot be used ends the start with exit code 78 and one line on standard error: the setting's name and
the rule it breaks, never its value. `sidecar check-config FILE` says the same without starting; key files are read only
at the start. An unknown key is such a setting, in the environment too.

Between keys:

- outside development `user_tokens` (`issuer`, `audience`, `key_file`) is required, `grpc.reflection` must be off and
  `"*"` must not be among `websocket.allowed_origins`;
- in development (`--dev`) every listener is on loopback;
- a `grpc.listen` on TCP stays on loopback unless `grpc.allow_insecure` is true; no two listeners share an address;
- `limits.idle_timeout_s` is not shorter than `limits.health_check_interval_s`;
- `outbox.max_bytes`, `outbox.critical_reserve_bytes` and `limits.queued_bytes_per_user` hold a message of
  `limits.max_message_bytes` and its 256 bytes; `grpc.max_request_bytes` is above `limits.max_message_bytes`;
  `websocket.bytes_per_second` is not below `limits.max_inbound_bytes`;
- each of several issuers (`[[user_tokens]]`) names its tenants, and no tenant has two.
"""


def main() -> int:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where the page is not current")
    arguments = parser.parse_args()
    page = "\n".join(_lines())
    if not arguments.check:
        TARGET.parent.mkdir(exist_ok=True)
        TARGET.write_text(page, encoding="utf-8")
        return 0
    if TARGET.is_file() and TARGET.read_text(encoding="utf-8") == page:
        return 0
    print("docs/configuration.md is not current: run scripts/generate_configuration_doc.py", file=sys.stderr)
    return 1


def _lines() -> Iterator[str]:
    yield PREFACE
    for name, field in Config.model_fields.items():
        yield from _section(name, _model(field.annotation))


def _section(name: str, model: type[BaseModel]) -> Iterator[str]:
    yield f"## `[{name}]`\n"
    yield f"{model.__doc__}\n"
    yield "| key | type | default | what it is |"
    yield "| --- | --- | --- | --- |"
    for key, field in model.model_fields.items():
        cells = (f"`{key}`", _type(field), _default(field), field.description or "")
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield f"\nIn the environment: `{ENVIRONMENT_PREFIX}{name.upper()}__…`\n"


def _model(annotation: Any) -> type[BaseModel]:
    """The section's class, also of an array of tables."""
    found = get_args(annotation)[0] if get_origin(annotation) is tuple else annotation
    assert isinstance(found, type)
    assert issubclass(found, BaseModel)
    return found


def _type(field: FieldInfo) -> str:
    text = _named(field.annotation)
    least = next((item.ge for item in field.metadata if isinstance(item, Ge)), None)
    most = next((item.le for item in field.metadata if isinstance(item, Le)), None)
    if least is not None and most is not None:
        text += f", {least} to {most}"
    if text == "list":
        longest = next((item.max_length for item in field.metadata if isinstance(item, MaxLen)), None)
        text += "" if longest is None else f", at most {longest}"
    return text


def _named(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _named(arguments[0])
    if origin in {Union, types.UnionType}:
        return _named(next(member for member in arguments if member is not type(None)))
    if origin is Literal:
        return " or ".join(f"`{json.dumps(value)}`" for value in arguments)
    if origin is tuple:
        inner = _named(arguments[0])
        return "list" if inner == "string" else f"list of {inner}"
    return {str: "string", int: "integer", float: "number", bool: "boolean", Path: "path"}[annotation]


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return "none"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return f"`{json.dumps(str(value) if isinstance(value, Path) else value)}`"


if __name__ == "__main__":
    sys.exit(main())
