"""What keeps the sidecar from starting: a setting, or something else."""

from __future__ import annotations

from sidecar.security.files import SettingError


class ConfigError(SettingError):
    """A setting that is missing, unknown or breaks a rule. At start-up: exit 78."""


class StartError(Exception):
    """What keeps the sidecar from starting though its settings are good, such as a port in use: one line. Exit 1."""
