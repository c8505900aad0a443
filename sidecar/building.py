"""From the configuration to what each part is handed at construction; reads the key files, opens the database."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from sidecar.config import StartError
from sidecar.core.identity import Scope
from sidecar.core.limits import Limits
from sidecar.core.outbox import OutboxLimits
from sidecar.security.files import SettingError
from sidecar.security.keys import load_key_set
from sidecar.security.revocations import RevocationList
from sidecar.security.service_auth import ServiceAuthenticator
from sidecar.security.storage_key import load_storage_key
from sidecar.security.user_tokens import IssuerSettings
from sidecar.storage.memory import MemoryOutboxStore
from sidecar.ws.settings import WebSocketSettings

if TYPE_CHECKING:
    from sidecar.config import Config, UserTokenSettings
    from sidecar.core.ports import Clock
    from sidecar.core.writes import WriteBatch
    from sidecar.development import Development
    from sidecar.security.keys import KeySet
    from sidecar.storage.sqlite.store import SqliteOutboxStore


def limits_of(config: Config) -> Limits:
    """What the core is held to."""
    limits, outbox = config.limits, config.outbox
    return Limits(
        managers_per_user=limits.managers_per_user,
        connections_per_manager=limits.connections_per_manager,
        max_managers=limits.max_managers,
        idle_timeout_s=limits.idle_timeout_s,
        health_check_interval_s=limits.health_check_interval_s,
        pong_timeout_s=limits.pong_timeout_s,
        slow_consumer_timeout_s=limits.slow_consumer_timeout_s,
        max_message_bytes=limits.max_message_bytes,
        queued_bytes_per_user=limits.queued_bytes_per_user,
        messages_per_second_per_user=limits.messages_per_second_per_user,
        stream_idle_timeout_s=config.streams.idle_timeout_s,
        outbox=OutboxLimits(
            max_messages=outbox.max_messages,
            max_bytes=outbox.max_bytes,
            ttl_s=outbox.ttl_s,
            critical_reserve=outbox.critical_reserve,
            critical_reserve_bytes=outbox.critical_reserve_bytes,
            resume_window_s=outbox.resume_window_s,
        ),
    )


def websocket_settings(config: Config, development: Development | None, ops_port: int) -> WebSocketSettings:
    """What the WebSocket edge is told; in development the demo page's origins are let in."""
    websocket, limits = config.websocket, config.limits
    own_pages = () if development is None else development.origins(ops_port)
    return WebSocketSettings(
        host=websocket.address.host,
        port=websocket.address.port,
        allowed_origins=(*websocket.allowed_origins, *own_pages),
        trusted_proxies=websocket.trusted_proxies,
        frames_per_second=websocket.frames_per_second,
        bytes_per_second=websocket.bytes_per_second,
        max_connections=websocket.max_connections,
        max_half_open=websocket.max_handshakes,
        handshake_timeout_s=websocket.handshake_timeout_s,
        connects_per_second_per_address=websocket.connects_per_second_per_address,
        failures_per_second_per_address=websocket.failures_per_second_per_address,
        hello_timeout_s=limits.hello_timeout_s,
        max_inbound_bytes=limits.max_inbound_bytes,
        max_message_bytes=limits.max_message_bytes,
        idle_timeout_s=limits.idle_timeout_s,
        resume_window_s=config.outbox.resume_window_s,
        client_scopes=tuple(Scope(name) for name in config.context_tokens.client_scopes),
    )


def issuers(config: Config) -> list[IssuerSettings]:
    """The identity providers, with their keys."""
    return [
        IssuerSettings(
            issuer=issuer.issuer,
            audience=issuer.audience,
            algorithms=issuer.algorithms,
            keys=_user_keys(issuer),
            tenants=issuer.tenants,
        )
        for issuer in config.user_tokens
    ]


def services(config: Config, development: Development | None, clock: Clock) -> ServiceAuthenticator:
    """The services that may call."""
    if config.service_auth.token_file is not None:
        return ServiceAuthenticator.from_file(config.service_auth.token_file, clock)
    if development is not None:
        return ServiceAuthenticator.with_token(development.service_token)
    return ServiceAuthenticator()


def revocations(config: Config, clock: Clock) -> RevocationList:
    """Beside the key file: tokens that outlive the process are revoked beyond it too."""
    key_file = config.context_tokens.key_file
    path = None if key_file is None else key_file.with_name(f"{key_file.name}.revoked")
    return RevocationList(path, now=clock.time())


def outbox_store(config: Config, writes: WriteBatch) -> MemoryOutboxStore | SqliteOutboxStore:
    """The store. Raises SettingError for a file that cannot be used, StartError for one that another process holds."""
    storage = config.storage
    if storage.kind == "memory":
        return MemoryOutboxStore()
    from sidecar.storage.sqlite.database import is_there
    from sidecar.storage.sqlite.errors import StoreInUse, StoreUnusable
    from sidecar.storage.sqlite.store import SqliteOutboxStore

    assert storage.path is not None
    assert storage.key_file is not None
    try:
        # A file that is not a store of ours has no key to be missed: its own fault is the one to tell.
        key = load_storage_key(storage.key_file, store_exists=partial(is_there, storage.path))
        return SqliteOutboxStore(storage.path, key, writes)
    except StoreUnusable as error:
        raise SettingError(error.setting, error.rule) from None
    except StoreInUse:
        raise StartError("storage.path: the database is in use by another process") from None


def _user_keys(issuer: UserTokenSettings) -> KeySet:
    if issuer.key_file is None:
        raise SettingError("user_tokens.key_file", "is required")
    return load_key_set(issuer.key_file, issuer.algorithms, key_id=issuer.key_id)
