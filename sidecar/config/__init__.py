"""The settings: one frozen `Config` from a TOML file and the environment, which beats the file.

Opens nothing but that file: no socket, no key file. Every problem is a `ConfigError` of one line that names the setting
and the rule and never holds the value.
"""

from __future__ import annotations

from sidecar.config.addresses import TcpAddress, UnixAddress, parse_address
from sidecar.config.checks import CLOSING_S
from sidecar.config.errors import ConfigError, StartError
from sidecar.config.sections import (
    AuditSettings,
    ClusterSettings,
    ContextTokenSettings,
    DrainSettings,
    GrpcSettings,
    LimitSettings,
    LogSettings,
    OpsSettings,
    OutboxSettings,
    ServiceAuthSettings,
    StorageSettings,
    StreamSettings,
    UserTokenSettings,
    WebSocketSettings,
)
from sidecar.config.settings import ENVIRONMENT_PREFIX, Config, development_config
from sidecar.config.sources import load_config

__all__ = [
    "Config",
    "load_config",
    "development_config",
    "ENVIRONMENT_PREFIX",
    "CLOSING_S",
    "ConfigError",
    "StartError",
    "AuditSettings",
    "ClusterSettings",
    "ContextTokenSettings",
    "DrainSettings",
    "GrpcSettings",
    "LimitSettings",
    "LogSettings",
    "OpsSettings",
    "OutboxSettings",
    "ServiceAuthSettings",
    "StorageSettings",
    "StreamSettings",
    "UserTokenSettings",
    "WebSocketSettings",
    "TcpAddress",
    "UnixAddress",
    "parse_address",
]
