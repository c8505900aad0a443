"""The composition root hands each part what the settings say."""

from __future__ import annotations

from sidecar.building import limits_of, websocket_settings
from sidecar.config import Config
from sidecar.core.limits import Limits
from sidecar.rpc.server import RpcSettings
from sidecar.ws.settings import WebSocketSettings


def test_the_defaults_of_the_settings_are_those_of_the_parts() -> None:
    config = Config()
    assert limits_of(config) == Limits()
    assert websocket_settings(config, None, 0) == WebSocketSettings(host="127.0.0.1", port=8080)
    rpc = RpcSettings(config.grpc.listen)
    assert rpc.max_receive_bytes == config.grpc.max_request_bytes
    assert rpc.max_concurrent_calls == config.grpc.max_concurrent_calls
