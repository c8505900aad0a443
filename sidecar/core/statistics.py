"""The three groups of statistics, as values; each is counted where the thing happens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class FactoryStatistics(NamedTuple):
    """Counted since the start; the lifetime is the mean over managers that ended, in minutes."""

    total_managers_created: int
    active_managers: int
    managers_cleaned_up: int
    users_with_active_managers: int
    resource_limit_hits: int
    average_manager_lifetime_minutes: float


class ManagerStatistics(NamedTuple):
    """One manager, now. `last_activity_time` is Unix seconds; failed are sends refused after authentication."""

    connections_managed: int
    messages_sent_total: int
    messages_failed_total: int
    last_activity_time: float
    manager_age_seconds: float
    cleanup_scheduled: bool
    outbox_messages: int
    outbox_bytes: int


@dataclass(slots=True)
class SecurityCounters:
    """Counted by the edges where they refuse; the audit trail counts its own records."""

    isolation_violations_detected: int = 0
    unauthorized_access_attempts: int = 0
    context_validation_failures: int = 0
    resource_limit_enforcements: int = 0
