"""The settings of the WebSocket edge that would contradict each other."""

from __future__ import annotations

import pytest

from sidecar.ws.settings import WebSocketSettings


def test_a_rate_must_let_the_largest_message_through() -> None:
    assert WebSocketSettings(bytes_per_second=65_536.0, max_inbound_bytes=65_536).bytes_per_second == 65_536.0
    assert WebSocketSettings(bytes_per_second=0.0).bytes_per_second == 0.0, "no limit"
    with pytest.raises(ValueError, match="bytes_per_second must not be below"):
        WebSocketSettings(bytes_per_second=65_535.0, max_inbound_bytes=65_536)
