"""Why a database file cannot be used. Both end the start of a sidecar, and leave the file as it was."""

from __future__ import annotations


class StoreUnusable(Exception):
    """`setting` is the key of [storage] that is to change, `rule` what it must be."""

    def __init__(self, setting: str, rule: str) -> None:
        super().__init__(f"storage.{setting}: {rule}")
        self.setting = f"storage.{setting}"
        self.rule = rule


class StoreInUse(Exception):
    """Another process holds the file."""
