"""The log's lines, ours and the libraries': their form, their level, and what they hide."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
import structlog

from sidecar.logs import REDACTED, configure_logging

CANARY = "canary-7f3a"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl"
LOGGERS = ("websockets", "websockets.server", "aiohttp.access")


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, former in levels.items():
        logging.getLogger(name).setLevel(former)
        logging.getLogger(name).disabled = False
    logging.captureWarnings(False)
    structlog.reset_defaults()


Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Lines:
    """What was written since the last look, each line one JSON object."""
    return lambda: [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_an_event_is_one_json_line(lines: Lines) -> None:
    configure_logging("json", "info")
    structlog.get_logger("sidecar.rpc").info("call failed", method="SendToUser", attempts=2)
    (line,) = lines()
    assert datetime.fromisoformat(line.pop("timestamp")).utcoffset() == timedelta(0)
    assert line == {
        "event": "call failed",
        "method": "SendToUser",
        "attempts": 2,
        "level": "info",
        "logger": "sidecar.rpc",
    }


def test_a_library_s_record_takes_the_same_form(lines: Lines) -> None:
    configure_logging("json", "info")
    logging.getLogger("grpc._server").error("call %s", "failed")
    (line,) = lines()
    assert (line["event"], line["level"], line["logger"]) == ("call failed", "error", "grpc._server")


def test_a_warning_of_python_s_takes_the_same_form(lines: Lines) -> None:
    configure_logging("json", "info")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("soon gone", FutureWarning, stacklevel=1)
    (line,) = lines()
    assert line["logger"] == "py.warnings"


def test_less_severe_than_the_level_is_not_written(lines: Lines) -> None:
    configure_logging("json", "warning")
    structlog.get_logger("sidecar").info("no")
    logging.getLogger("asyncio").info("no")
    structlog.get_logger("sidecar").warning("yes")
    assert [line["event"] for line in lines()] == ["yes"]


def test_websockets_never_logs_its_headers(lines: Lines) -> None:
    configure_logging("json", "debug")
    logging.getLogger("websockets.server").debug("< Authorization: Bearer %s", CANARY)
    logging.getLogger("websockets.server").info("connection open")
    logging.getLogger("asyncio").debug("using selector")
    assert [line["event"] for line in lines()] == ["connection open", "using selector"]


def test_requests_are_not_logged(lines: Lines) -> None:
    configure_logging("json", "debug")
    logging.getLogger("aiohttp.access").info("GET /")
    assert lines() == []


@pytest.mark.parametrize(
    "name",
    [
        "token",
        "x-service-token",
        "contextToken",
        "user_tokens",
        "api_key",
        "key",
        "Keys",
        "isolation_key",
        "apiKey",
        "client_secret",
        "payload",
        "Authorization",
        "password",
        "set-cookie",
        "credentials",
    ],
)
def test_what_is_named_like_a_secret_is_hidden(lines: Lines, name: str) -> None:
    configure_logging("json", "info")
    structlog.get_logger("sidecar").info("event", **{name: CANARY, "inner": [{name: (CANARY,)}]})
    (line,) = lines()
    assert (line[name], line["inner"]) == (REDACTED, [{name: REDACTED}])


@pytest.mark.parametrize("name", ["monkey", "keyboard", "user_id", "turkeys", "method"])
def test_what_only_sounds_like_it_is_shown(lines: Lines, name: str) -> None:
    configure_logging("json", "info")
    structlog.get_logger("sidecar").info("event", **{name: "shown"})
    assert lines()[0][name] == "shown"


def test_numbers_are_no_secrets(lines: Lines) -> None:
    configure_logging("json", "info")
    structlog.get_logger("sidecar").info("event", payload_bytes=7, token_known=True, key=None)
    (line,) = lines()
    assert (line["payload_bytes"], line["token_known"], line["key"]) == (7, True, None)


def test_a_jwt_is_hidden_in_any_text(lines: Lines) -> None:
    configure_logging("json", "info")
    logging.getLogger("aiohttp.server").error("bad request: %s", f"Bearer {JWT}")
    try:
        raise ValueError(JWT)
    except ValueError:
        structlog.get_logger("sidecar").exception("failed", values=[JWT, b"bytes", object])
    first, second = lines()
    assert first["event"] == f"bad request: Bearer {REDACTED}"
    assert second["exception"].endswith(f"ValueError: {REDACTED}")
    assert second["values"] == [REDACTED, "[5 bytes]", repr(object)]


def test_an_event_stays_one_line_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("console", "info")
    structlog.get_logger("sidecar").info("a\nb\x1b[2J", user="x\u2028y", token=CANARY)
    written = capsys.readouterr().err
    assert written.count("\n") == 1
    assert "a\\nb\\x1b[2J" in written
    assert "\x1b" not in written
    assert "\u2028" not in written
    assert CANARY not in written


def test_people_see_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("console", "info")
    try:
        raise ValueError("inside")
    except ValueError:
        logging.getLogger("asyncio").exception("failed")
    written = capsys.readouterr().err
    assert "failed" in written
    assert "ValueError: inside\n" in written


def test_a_second_call_replaces_the_first(lines: Lines) -> None:
    logger = structlog.get_logger("sidecar")
    configure_logging("console", "info")
    logger.info("for people")
    assert "for people" in capture(lines)
    configure_logging("json", "error")
    logger.info("no")
    logger.error("yes")
    assert [line["event"] for line in lines()] == ["yes"]


def capture(lines: Lines) -> str:
    """The text of lines that are no JSON."""
    with pytest.raises(json.JSONDecodeError) as caught:
        lines()
    return caught.value.doc


def test_a_line_that_cannot_be_written_is_given_up(lines: Lines) -> None:
    logging.getLogger().handlers.clear()  # pytest's own would raise
    configure_logging("json", "info")
    too_few = (CANARY,)
    logging.getLogger("asyncio").error("%s %s", *too_few)
    assert lines() == []
