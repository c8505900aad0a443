"""What one direction of a proxied connection waits with."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.support.fault_flow import wait_by_timer

SOON_S = 0.0001


async def test_a_wait_may_be_cancelled_as_its_time_is_over() -> None:
    loop = asyncio.get_running_loop()
    troubles: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, trouble: troubles.append(trouble))
    waiting = asyncio.create_task(wait_by_timer(SOON_S))
    await asyncio.sleep(0)
    loop.call_soon(waiting.cancel)
    sum(range(1_000_000))  # longer than that, so that both are due in one turn of the loop
    await asyncio.gather(waiting, return_exceptions=True)
    assert waiting.cancelled()
    assert troubles == []
