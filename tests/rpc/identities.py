"""Service identities for tests: what each may do is said where it is used."""

from __future__ import annotations

from collections.abc import Iterable

from sidecar.core.identity import Scope
from sidecar.security.service_auth import DEFAULT_SCOPES, Permission, ServiceIdentity

NOTHING = "token-of-one-that-may-nothing"
SCOPED = "token-of-one-with-one-tenant"


def identity(
    *allow: Permission, tenants: Iterable[str] | None = None, scopes: frozenset[Scope] = DEFAULT_SCOPES
) -> ServiceIdentity:
    """A service that may do that; without `tenants` in every tenant."""
    return ServiceIdentity("scoped", frozenset(allow), None if tenants is None else frozenset(tenants), scopes)
