"""The close-code catalogue and the closes that services ask for."""

from __future__ import annotations

import pytest

from sidecar.core.close_codes import SERVICE_CODES, Close, CloseCode, catalogued, service_close

CATALOGUE = {
    1000: "normal",
    1001: "going_away",
    1002: "protocol_error",
    1003: "unsupported_data",
    1007: "invalid_data",
    1009: "message_too_big",
    1012: "restart",
    1013: "overloaded",
    4000: "token_expired",
    4001: "hello_timeout",
    4002: "pong_timeout",
    4003: "slow_consumer",
    4005: "rate_limited",
    4500: "bad_frame",
    4501: "token_invalid",
    4502: "forbidden",
    4503: "taken_over",
    4504: "limit_reached",
    4505: "closed_by_service",
    4506: "revoked",
    4507: "idle",
    4508: "replaced",
}


def test_the_catalogue_is_the_contracts() -> None:
    assert {close.code: close.text for close in map(catalogued, CloseCode)} == CATALOGUE


def test_an_internal_error_is_never_sent() -> None:
    assert 1011 not in set(CloseCode)


@pytest.mark.parametrize("code", [4900, 4999])
def test_a_service_closes_with_its_own_code_and_text(code: int) -> None:
    assert code in SERVICE_CODES
    assert service_close(code, "lunch") == Close(code, "lunch")


@pytest.mark.parametrize("code", [0, 1000, 1011, 4504, 4505, 4899, 5000])
def test_any_other_code_is_closed_by_service(code: int) -> None:
    assert service_close(code, "mine") == Close(4505, "closed_by_service")


def test_a_service_code_without_text_gets_the_catalogues() -> None:
    assert service_close(4900, "") == Close(4900, "closed_by_service")


def test_a_service_text_fits_a_close_frame_and_ends_on_a_character() -> None:
    assert service_close(4900, "x" * 124).text == "x" * 123
    assert service_close(4900, "é" * 62).text == "é" * 61  # 123 bytes would cut the last one in half
