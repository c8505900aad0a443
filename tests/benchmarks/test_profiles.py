"""How samples become shares."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.profiles import LOOP, OTHER_THREADS, attribute, group_of
from benchmarks.servers import RunFailed

RUN = {"file": "/usr/lib/python3.11/asyncio/runners.py", "function": "Runner.run", "at": "self._loop.run(x)"}
TAKE = {"file": "/src/sidecar/rpc/deliver.py", "function": "DeliverStream._take", "at": "self._on(items)"}
PARSE = TAKE | {"at": "pb.DeliverRequest.FromString(data)"}
WRITE = {"file": "/src/sidecar/ws/socket.py", "function": "ClientSocket.write", "at": "self.x.transport.write(frame)"}
MADE = {"file": "<string>", "function": "<lambda>", "at": ""}


@pytest.mark.parametrize(
    ("frame", "group"),
    [
        (RUN, LOOP),
        ({"file": "/usr/lib/python3.11/_weakrefset.py", "function": "WeakSet.add", "at": ""}, LOOP),
        (TAKE, "sidecar.rpc"),
        (PARSE, "protobuf"),
        (TAKE | {"at": "receipts.add()"}, "protobuf"),
        (TAKE | {"at": "self._open.add(stream)"}, "sidecar.rpc"),
        (TAKE | {"at": "self._call.read()"}, "grpc"),
        (WRITE, "socket writes (uvloop and the kernel)"),
        ({"file": "/src/sidecar/app.py", "function": "f", "at": ""}, "sidecar.app"),
        ({"file": "/v/site-packages/grpc/aio/_server.py", "function": "f", "at": ""}, "grpc"),
        ({"file": "/v/site-packages/websockets/protocol.py", "function": "f", "at": ""}, "websockets"),
        ({"file": "/usr/lib/python3.11/json/__init__.py", "function": "f", "at": ""}, "other"),
    ],
)
def test_a_place_belongs_to_a_group(frame: dict[str, str], group: str) -> None:
    assert group_of(frame) == group


def samples(*stacks: tuple[int, list[dict[str, str]]], other: int = 0) -> dict[str, Any]:
    return {"other_threads_ns": other, "stacks": [{"ns": ns, "frames": frames} for ns, frames in stacks]}


def test_shares_add_up_and_a_function_has_its_callees_within() -> None:
    profile = attribute(
        "unary", samples((10, [RUN, TAKE]), (20, [RUN, TAKE, WRITE]), (30, [RUN]), (20, [RUN, PARSE, MADE]), other=20)
    )
    groups = dict(profile.groups)
    assert sum(groups.values()) == pytest.approx(1)
    assert groups[OTHER_THREADS] == pytest.approx(0.2)
    assert groups["protobuf"] == pytest.approx(0.2)
    assert groups["sidecar.rpc"] == pytest.approx(0.1)
    assert dict(profile.own)["sidecar.rpc.deliver: DeliverStream._take"] == pytest.approx(0.3)
    assert dict(profile.within) == {
        "sidecar.rpc.deliver: DeliverStream._take": pytest.approx(0.5),
        "sidecar.ws.socket: ClientSocket.write": pytest.approx(0.2),
    }
    assert "20.0 %" in profile.text()
    assert "| protobuf | 20.0 % |" in profile.markdown()


def test_no_samples_are_no_profile() -> None:
    with pytest.raises(RunFailed, match="no sample"):
        attribute("unary", samples())
