"""What README.md, docs/api.md and docs/protocol.md say is not served yet is not: once it is, they must not say so."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

from sidecar.api.v1 import (
    admin_service_pb2,
    agent_service_pb2,
    context_service_pb2,
    delivery_service_pb2,
    types_pb2,
)
from sidecar.config import ConfigError, load_config
from tests.docs.pages import ROOT
from tests.support.running import RunningSidecar, User, refusal

API: Final = ROOT / "docs" / "api.md"
METHODS: Final[list[MethodDescriptor]] = [
    method
    for file in (delivery_service_pb2, context_service_pb2, agent_service_pb2, admin_service_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
    if method.name != "Drain"  # that one is served: it would be the end of the sidecar
]


def marked() -> set[str]:
    """The methods that the API page says are not served."""
    chapters = re.split(r"^### ", API.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {chapter.partition("\n")[0] for chapter in chapters if "\nNot served by this version:" in chapter}


async def reason_of(method: MethodDescriptor, channel: grpc.aio.Channel, tokens: Any) -> str:
    """How the method refuses an empty request; "" where it does not."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    decode: Callable[[bytes], Any] = GetMessageClass(method.output_type).FromString
    kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    call = getattr(channel, kind)(path, request_serializer=lambda data: data, response_deserializer=decode)
    request: Any = iter([b""]) if method.client_streaming else b""
    answer = call(request, metadata=tokens, timeout=10)
    try:
        if method.server_streaming:
            async for _ in answer:
                pass
        else:
            await answer
    except grpc.aio.AioRpcError as error:
        return (await refusal(_raising(error))).reason
    return ""


async def _raising(error: Exception) -> None:
    raise error


async def test_the_methods_marked_are_those_not_served(sidecar: RunningSidecar) -> None:
    async with sidecar.user("alice") as alice, grpc.aio.insecure_channel(sidecar.grpc_target) as channel:
        tokens = (("x-context-token", alice.context_token), ("x-service-token", sidecar.service_token))
        unsupported = {each.name for each in METHODS if await reason_of(each, channel, tokens) == "UNSUPPORTED"}
    assert marked() == unsupported


async def test_the_fields_that_are_named_are_not_served(sidecar: RunningSidecar) -> None:
    async with sidecar.user("alice") as alice, sidecar.service() as service:
        assert (await refusal(service.send(*own(alice), min_durability=types_pb2.DURABILITY_DISK))).reason == (
            "DURABILITY_UNAVAILABLE"
        )


def own(user: User) -> tuple[str, str]:
    return user.isolation_key, user.context_token


@pytest.mark.parametrize(("section", "kind"), [("cluster", "nats")])
def test_the_kinds_that_are_named_refuse_to_start(section: str, kind: str, tmp_path: Path) -> None:
    file = tmp_path / "sidecar.toml"
    file.write_text(f'[{section}]\nkind = "{kind}"\n')
    with pytest.raises(ConfigError) as caught:
        load_config(file, {})
    assert caught.value.setting == f"{section}.kind"
