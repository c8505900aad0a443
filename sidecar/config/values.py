"""The types of single values: each checks its own and names the rule, never the value."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from sidecar.config.addresses import MAX_UNIX_PATH_BYTES, TcpAddress, parse_address
from sidecar.core.identity import IDENTIFIER
from sidecar.security.files import SettingError
from sidecar.security.keys import check_algorithms

_ORIGIN: Final = re.compile(
    r"([a-z][a-z0-9+.-]{0,30})://([a-z0-9._-]{1,253}|\[[0-9a-f:.]{2,45}\])(?::([1-9][0-9]{0,4}))?"
)
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


def _rule(text: str) -> PydanticCustomError:
    # Handed over as a value: pydantic fills in braces of the template, and a rule is not one.
    return PydanticCustomError("rule", "{rule}", {"rule": text})


def _tcp_listen(text: str) -> str:
    try:
        if isinstance(parse_address(text), TcpAddress):
            return text
    except ValueError:
        pass
    raise _rule("must be host:port or [IPv6]:port")


def _listen(text: str) -> str:
    try:
        parse_address(text)
    except ValueError:
        raise _rule(
            f"must be host:port, [IPv6]:port or unix: and an absolute path of at most {MAX_UNIX_PATH_BYTES} bytes"
        ) from None
    return text


def _path(value: object) -> Path:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value or "\0" in value:
        raise _rule("must be a path")
    return Path(value)


def as_tuple(value: object) -> object:
    """A list as a tuple; what is no list as it is."""
    return tuple(value) if isinstance(value, list) else value


def _origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    for origin in origins:
        if origin != "*" and not _is_origin(origin):
            raise _rule("each must be an exact origin as browsers send it: scheme://host[:port], in lower case")
    return origins


def _is_origin(text: str) -> bool:
    found = _ORIGIN.fullmatch(text)
    if found is None:
        return False
    port = int(found[3] or 0)
    return port <= 65535 and port != _DEFAULT_PORTS.get(found[1], -1)


def _networks(networks: tuple[str, ...]) -> tuple[str, ...]:
    try:
        lengths = [ipaddress.ip_network(network).prefixlen for network in networks]
    except ValueError:
        raise _rule("each must be an IP address or a network in CIDR form") from None
    if 0 in lengths:
        raise _rule("must not trust every address")
    return networks


def _algorithms(names: tuple[str, ...]) -> tuple[str, ...]:
    try:
        check_algorithms(names)
    except SettingError as error:
        raise _rule(error.rule) from None
    return names


def _identifiers(names: tuple[str, ...]) -> tuple[str, ...]:
    if not all(IDENTIFIER.fullmatch(name) for name in names):
        raise _rule(f"each must match {IDENTIFIER.pattern}")
    return names


def _jwks_url(url: str) -> str:
    if not url.startswith("https://"):
        raise _rule("must begin with https://")
    raise _rule("not supported by this version; give key_file")


def _alone_only(kind: str) -> str:
    if kind == "nats":
        raise _rule('"nats" is not supported by this version')
    return kind


Text = Annotated[str, Field(min_length=1, max_length=1024)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(as_tuple), Field(max_length=1000)]
FilePath = Annotated[Path, BeforeValidator(_path)]
Seconds = Annotated[float, Field(allow_inf_nan=False)]

TcpListen = Annotated[Text, AfterValidator(_tcp_listen)]
Listen = Annotated[Text, AfterValidator(_listen)]
Origins = Annotated[Texts, AfterValidator(_origins)]
Networks = Annotated[Texts, AfterValidator(_networks)]
Algorithms = Annotated[Texts, AfterValidator(_algorithms)]
Identifiers = Annotated[Texts, Field(min_length=1), AfterValidator(_identifiers)]
JwksUrl = Annotated[Text, AfterValidator(_jwks_url)]
ClientScopes = Annotated[tuple[Literal["send", "emit", "stats"], ...], BeforeValidator(as_tuple)]
ClusterKind = Annotated[Literal["none", "nats"], AfterValidator(_alone_only)]
