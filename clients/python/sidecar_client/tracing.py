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
TOLD: Final = ("traceparent", "tracestate")
"""No baggage: what a program tells its own parts is not for the sidecar."""


def trace_context() -> Metadata:
    """What OpenTelemetry's propagator says of the current span, as metadata: `traceparent` and `tracestate`.

    For unary calls alone: a stream is many users' and outlives each one's trace.
    """
    if inject is None:
        return NOTHING
    carrier: dict[str, str] = {}
    inject(carrier)
    return tuple((name, carrier[name]) for name in TOLD if name in carrier)
