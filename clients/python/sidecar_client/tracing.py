"""The caller's trace goes with its calls (W3C Trace Context), where OpenTelemetry is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sidecar_client.calls import Metadata

try:
    from opentelemetry.propagate import inject
except ImportError:
    inject = None  # type: ignore[assignment]

NOTHING: Final[Metadata] = ()


def trace_context() -> Metadata:
    """What OpenTelemetry's propagator says of the current span, as metadata: `traceparent`, and what goes with it.

    For unary calls alone: a stream is many users' and outlives each one's trace.
    """
    if inject is None:
        return NOTHING
    carrier: dict[str, str] = {}
    inject(carrier)
    return tuple((name.lower(), value) for name, value in carrier.items() if value.isascii() and value.isprintable())
