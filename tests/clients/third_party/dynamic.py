"""Calls without generated stubs: messages are built from the descriptors that the server gives of itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import grpc
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

Members = dict[str, Any]
Metadata = tuple[tuple[str, str], ...]
TIMEOUT_S = 20.0


class Dynamic:
    """What a generic tool does with a channel. Blocking. Members are those of the JSON mapping of protobuf."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self._database = ProtoReflectionDescriptorDatabase(channel)
        self._pool = DescriptorPool(self._database)

    def services(self) -> set[str]:
        """The names of all that there are."""
        return set(self._database.get_services())

    def unary(self, service: str, method: str, members: Members, metadata: Metadata = ()) -> Members:
        """One request, one answer. Raises grpc.RpcError."""
        path, serializer, deserializer, found = self._ways(service, method)
        call = self._channel.unary_unary(path, serializer, deserializer)
        return _read(call(self._message(found, members), metadata=metadata, timeout=TIMEOUT_S))

    def from_stream(self, service: str, method: str, members: Members) -> Iterator[Members]:
        """One request, many answers."""
        path, serializer, deserializer, found = self._ways(service, method)
        call = self._channel.unary_stream(path, serializer, deserializer)
        yield from map(_read, call(self._message(found, members), timeout=TIMEOUT_S))

    def both_ways(self, service: str, method: str, requests: Iterable[Members]) -> list[Members]:
        """Many requests, then the half-close, and all the answers."""
        path, serializer, deserializer, found = self._ways(service, method)
        call = self._channel.stream_stream(path, serializer, deserializer)
        frames = iter([self._message(found, members) for members in requests])
        return [_read(answer) for answer in call(frames, timeout=TIMEOUT_S)]

    def _ways(self, service: str, method: str) -> tuple[str, Any, Any, MethodDescriptor]:
        found: MethodDescriptor = self._pool.FindServiceByName(service).FindMethodByName(method)
        answer = message_factory.GetMessageClass(found.output_type)
        return f"/{service}/{method}", lambda message: message.SerializeToString(), answer.FromString, found

    def _message(self, method: MethodDescriptor, members: Members) -> Any:
        message = message_factory.GetMessageClass(method.input_type)()
        return json_format.ParseDict(members, message, descriptor_pool=self._pool)


def _read(message: Any) -> Members:
    return dict(json_format.MessageToDict(message, preserving_proto_field_name=True))
