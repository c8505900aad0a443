"""The caller's trace goes with its calls (W3C Trace Context §3.2), and nothing does where there is none."""

from __future__ import annotations

import asyncio
import subprocess
import sys

from opentelemetry import trace
from opentelemetry.baggage import set_baggage
from opentelemetry.context import attach, detach
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from sidecar_client.tracing import trace_context
from tests.clients.python.both import opened
from tests.clients.python.scripted import scripted_sidecar
from tests.clients.python.test_calls import accept

TRACE, SPAN = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_without_a_span_nothing_is_said() -> None:
    assert trace_context() == ()


def test_the_span_of_now_is_said() -> None:
    span = NonRecordingSpan(SpanContext(TRACE, SPAN, is_remote=False, trace_flags=TraceFlags(1)))
    with trace.use_span(span):
        assert trace_context() == (("traceparent", PARENT),)


def test_baggage_stays_at_home() -> None:
    span = NonRecordingSpan(SpanContext(TRACE, SPAN, is_remote=False, trace_flags=TraceFlags(1)))
    token = attach(set_baggage("customer", "alice"))
    try:
        with trace.use_span(span):
            assert trace_context() == (("traceparent", PARENT),)
    finally:
        detach(token)


async def test_a_call_carries_it_beside_its_token() -> None:
    span = NonRecordingSpan(SpanContext(TRACE, SPAN, is_remote=False, trace_flags=TraceFlags(1)))
    async with scripted_sidecar(accept) as scripted, opened("aio", endpoint=scripted.target) as client:
        with trace.use_span(span):
            await client.send_to_user("key", "token", json=1)
        await client.send_to_user("key", "token", json=2)
    traced, plain = scripted.metadata
    assert (traced["traceparent"], traced["x-context-token"]) == (PARENT, "token")
    assert "traceparent" not in plain


async def test_the_client_for_threads_does_too() -> None:
    span = NonRecordingSpan(SpanContext(TRACE, SPAN, is_remote=False, trace_flags=TraceFlags(1)))
    async with scripted_sidecar(accept) as scripted, opened("threads", endpoint=scripted.target) as client:
        # A context goes into a thread only with who takes it there.
        await client.send_to_user("key", "token", json=1)
        assert "traceparent" not in scripted.metadata[0]
        with trace.use_span(span):
            await asyncio.to_thread(client._inner.send_to_user, "key", "token", json=2)
    assert scripted.metadata[1]["traceparent"] == PARENT


def test_opentelemetry_may_be_absent() -> None:
    code = """
import sys
sys.modules["opentelemetry"] = None
import sidecar_client
from sidecar_client.tracing import trace_context
assert trace_context() == ()
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
