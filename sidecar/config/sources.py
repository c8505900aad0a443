"""Where settings come from: a TOML file, and the environment, which beats it. A problem becomes one line.

Opens nothing but that file; no line holds a value.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import EnvSettingsSource

from sidecar.config.errors import ConfigError
from sidecar.config.settings import ENVIRONMENT_DELIMITER, ENVIRONMENT_PREFIX, Config
from sidecar.security.files import SettingError, read_file

_KEY_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TOML_PLACE: Final = re.compile(r"\(at (line [0-9]+, column [0-9]+|end of document)\)$")
_RULES: Final = {
    "extra_forbidden": "unknown key",
    "missing": "is required",
    "string_type": "must be a string",
    "string_unicode": "must be UTF-8",
    "string_too_short": "must not be empty",
    "string_too_long": "must be at most {max_length} characters",
    "int_type": "must be an integer",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "tuple_type": "must be a list",
    "too_short": "must not be empty",
    "too_long": "must hold at most {max_length} entries",
    "model_type": "must be a table",
    "literal_error": "must be {expected}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
}


def load_config(path: Path | None, environ: Mapping[str, str]) -> Config:
    """Read the file, if any, and the environment, which beats it. Blocking. Raises ConfigError.

    A list in the environment is JSON or separated by commas; a whole section may be one JSON object.
    """
    data = {} if path is None else _read_toml(path)
    for section, keys in _read_environment(environ).items():
        data[section] = _merged(section, data.get(section), keys)
    for section in data:
        if section not in Config.model_fields:
            raise ConfigError(_setting_name((section,), data), "unknown key")
    try:
        return Config(**data)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=True, include_input=False)
        # A key mistyped first: it explains the one that is missing.
        problem = min(problems, key=lambda each: each["type"] != "extra_forbidden")
        raise ConfigError(_setting_name(problem["loc"], data), _rule_of(problem)) from None


class _EnvironmentSource(EnvSettingsSource):
    """The given environment instead of the process's; lists may be separated by commas."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        super().__init__(Config)
        self.env_vars = {name.lower(): value for name, value in environ.items()}

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: str) -> Any:
        """JSON, or a list's members between commas; anything else stays text, which the field's own type refuses."""
        if value.lstrip().startswith(("[", "{")):
            try:
                return json.loads(value)
            except (ValueError, RecursionError):
                return value
        return value if field_name in Config.model_fields else [part.strip() for part in value.split(",")]


def _read_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """The sections that the environment names. What has the prefix but no `__` is not ours, such as a client's."""
    prefix = ENVIRONMENT_PREFIX.lower()
    for name in environ:
        section, nested, _ = name.lower().removeprefix(prefix).partition(ENVIRONMENT_DELIMITER)
        if name.lower().startswith(prefix) and nested and section not in Config.model_fields:
            raise ConfigError(_setting_name((section,), {}), "unknown key")
    return _EnvironmentSource(environ)()


def _merged(section: str, file: object, environment: object) -> object:
    if not isinstance(environment, dict) or file is None:
        return environment
    if isinstance(file, list):
        raise ConfigError(section, "an array of tables cannot be changed key by key from the environment")
    return {**file, **environment} if isinstance(file, dict) else file


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_file(path, "config", private=False)[0].decode())
    except SettingError as error:
        raise ConfigError(error.setting, error.rule) from None
    except UnicodeDecodeError:
        raise ConfigError("config", "the file must be UTF-8") from None
    except (ValueError, RecursionError) as error:  # A message of the parser's may quote the file.
        place = _TOML_PLACE.search(str(error))
        raise ConfigError("config", f"the file must be TOML{f' (see {place[1]})' if place else ''}") from None


def _setting_name(location: tuple[int | str, ...], data: Mapping[str, Any]) -> str:
    """`websocket.listen`, `user_tokens[1].issuer`. A key that does not look like one is not repeated."""
    if isinstance(data.get("user_tokens"), dict) and location[:1] == ("user_tokens",):
        location = (location[0], *location[2:])
    name = ""
    for part in location:
        if isinstance(part, int):
            name += f"[{part}]"
        else:
            name += f"{'.' if name else ''}{part if _KEY_NAME.fullmatch(part) else '(unreadable)'}"
    return name


def _rule_of(problem: ErrorDetails) -> str:
    if problem["type"] == "rule":
        return problem["msg"]
    limits = {
        name: f"{value:.15g}" if isinstance(value, float) else value for name, value in problem.get("ctx", {}).items()
    }
    return _RULES.get(problem["type"], "must be of the right type").format(**limits).replace("'", '"')
