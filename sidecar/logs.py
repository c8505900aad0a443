"""The log: structlog on standard error, as JSON lines or for people. What libraries log goes the same way.

Nothing here is needed to log: every module asks structlog for its logger. Only the command line configures.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from typing import Final

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

REDACTED: Final = "[redacted]"

_SECRET_NAME: Final = re.compile(
    r"(?i:token|secret|passw|payload|authorization|credential|cookie)"
    r"|(?:^|[^A-Za-z])[Kk][Ee][Yy][Ss]?(?![A-Za-z])|[a-z]Keys?(?![a-z])"
)
_COMPACT_JWT: Final = re.compile(r"eyJ[A-Za-z0-9_-]*\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*)?")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class _StandardError(logging.StreamHandler):  # type: ignore[type-arg]  # generic in the stubs only
    """A line that cannot be written is given up: logging's own report would show its arguments."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Do nothing."""


def configure_logging(format: str, level: str) -> None:
    """Log from now on as `format` ("json" or "console"), at `level` and above. May be called again.

    The handshake's headers are in what websockets logs at DEBUG, so it never goes below INFO; requests are not logged.
    """
    handler = _StandardError(sys.stderr)
    handler.setFormatter(_formatter(format))
    root = logging.getLogger()
    for former in [each for each in root.handlers if isinstance(each, _StandardError)]:
        root.removeHandler(former)
    root.addHandler(handler)
    severity = logging.getLevelNamesMapping()[level.upper()]
    root.setLevel(severity)
    logging.getLogger("websockets").setLevel(max(severity, logging.INFO))
    logging.getLogger("aiohttp.access").disabled = True
    logging.captureWarnings(True)
    structlog.configure(
        processors=[*_shared(), structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(severity),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,  # Module-level loggers follow a second call.
    )


def redact(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """A processor: hide what is named like a secret, at any depth, all bytes, and what looks like a JWT in any text."""
    return {name: _redacted(name, value) for name, value in event.items()}


def _redacted(name: object, value: object) -> object:
    if isinstance(value, bool | int | float | None):
        return value
    if isinstance(name, str) and _SECRET_NAME.search(name):
        return REDACTED
    if isinstance(value, str):
        return _COMPACT_JWT.sub(REDACTED, value)
    if isinstance(value, bytes | bytearray | memoryview):
        return f"[{len(value)} bytes]"
    if isinstance(value, Mapping):
        return {inner: _redacted(inner, member) for inner, member in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted(None, member) for member in value]
    return value


def escape_control_characters(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """A processor for the console: one event stays one line and moves no cursor, whatever a value holds."""
    return {
        name: value if name == "exception" or not isinstance(value, str) else _CONTROL.sub(_escape, value)
        for name, value in event.items()
    }


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")


def _shared() -> list[Processor]:
    """What every event goes through, ours or a library's."""
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]


def _formatter(format: str) -> structlog.stdlib.ProcessorFormatter:
    last: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if format == "json":
        last += [structlog.processors.format_exc_info, redact, structlog.processors.JSONRenderer()]
    else:
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
        last += [structlog.processors.format_exc_info, redact, escape_control_characters, renderer]
    return structlog.stdlib.ProcessorFormatter(foreign_pre_chain=_shared(), processors=last)
