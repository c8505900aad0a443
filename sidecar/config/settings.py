"""All settings as one frozen `Config`, which reads no source, and what development changes in it."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import BeforeValidator, Field, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from sidecar.config.checks import (
    check_addresses,
    check_development,
    check_issuers,
    check_service,
    check_sizes,
    check_storage,
    check_times,
)
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
from sidecar.config.values import as_tuple

ENVIRONMENT_PREFIX: Final = "SIDECAR_"
ENVIRONMENT_DELIMITER: Final = "__"


def _issuers(value: object) -> object:
    return (value,) if isinstance(value, dict | UserTokenSettings) else as_tuple(value)


class Config(BaseSettings):
    """All settings, valid by themselves; `validate_for` says whether they are fit for what they are used for.

    Relative paths are relative to the working directory.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        hide_input_in_errors=True,
        env_prefix=ENVIRONMENT_PREFIX,
        env_nested_delimiter=ENVIRONMENT_DELIMITER,
    )

    websocket: WebSocketSettings = WebSocketSettings()
    grpc: GrpcSettings = GrpcSettings()
    ops: OpsSettings = OpsSettings()
    service_auth: ServiceAuthSettings = ServiceAuthSettings()
    user_tokens: Annotated[tuple[UserTokenSettings, ...], BeforeValidator(_issuers), Field(max_length=1000)] = ()
    context_tokens: ContextTokenSettings = ContextTokenSettings()
    limits: LimitSettings = LimitSettings()
    outbox: OutboxSettings = OutboxSettings()
    streams: StreamSettings = StreamSettings()
    storage: StorageSettings = StorageSettings()
    drain: DrainSettings = DrainSettings()
    cluster: ClusterSettings = ClusterSettings()
    audit: AuditSettings = AuditSettings()
    log: LogSettings = LogSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what is handed over: `load_config` reads the sources, and nothing is read behind its back."""
        return (init_settings,)

    @model_validator(mode="after")
    def _check_together(self) -> Config:
        """The rules between keys. A ConfigError is no ValueError, so it leaves pydantic as it is."""
        check_issuers(self.user_tokens)
        check_addresses(self.websocket, self.grpc, self.ops)
        check_sizes(self.websocket, self.grpc, self.limits, self.outbox)
        check_times(self.limits, self.drain)
        check_storage(self.storage, self.context_tokens)
        return self

    def validate_for(self, development: bool) -> None:
        """Raise ConfigError unless these settings are fit for development, or for service."""
        if development:
            check_development(self.websocket, self.grpc, self.ops)
        else:
            check_service(self.websocket, self.grpc, self.user_tokens)


def development_config(config: Config | None = None) -> Config:
    """These settings (None: the defaults) for development. Raises ConfigError for a listener off loopback.

    Where they do not say otherwise, reflection is on, the log is for people, and a stop does not take its time.
    """
    config = Config() if config is None else config
    config.validate_for(development=True)
    grpc, log, drain = config.grpc, config.log, config.drain
    if "reflection" not in grpc.model_fields_set:
        grpc = grpc.model_copy(update={"reflection": True})
    if "format" not in log.model_fields_set:
        log = log.model_copy(update={"format": "console"})
    if "window_s" not in drain.model_fields_set:
        drain = drain.model_copy(update={"window_s": 0.0})
    return config.model_copy(update={"grpc": grpc, "log": log, "drain": drain})
