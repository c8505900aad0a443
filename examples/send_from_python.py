"""Sends one message: `CONTEXT_TOKEN=… python send_from_python.py USER_ID TEXT`; USER_ID is whom *you* authenticated."""

import json
import os
import sys

import grpc

from sidecar.api.v1 import (
    context_service_pb2,
    context_service_pb2_grpc,
    delivery_service_pb2,
    delivery_service_pb2_grpc,
)
from sidecar.api.v1.types_pb2 import Message

user_id, text = sys.argv[1:3]
metadata = (("x-context-token", os.environ["CONTEXT_TOKEN"]),)
with grpc.insecure_channel(os.environ.get("SIDECAR_GRPC_ENDPOINT", "127.0.0.1:50051")) as channel:
    contexts = context_service_pb2_grpc.ContextServiceStub(channel)
    deliveries = delivery_service_pb2_grpc.DeliveryServiceStub(channel)
    context = contexts.GetContext(context_service_pb2.GetContextRequest(), metadata=metadata, timeout=5)
    message = Message(event_type="greeting", payload=json.dumps({"text": text}).encode())
    request = delivery_service_pb2.SendToUserRequest(
        isolation_key=context.isolation_key, message=message, expected_user_id=user_id
    )
    print(deliveries.SendToUser(request, metadata=metadata, timeout=5).receipt)
