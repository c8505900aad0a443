"""The one table that turns a `SidecarError` into a gRPC status with its details (google.rpc, AIP-193)."""

from __future__ import annotations

from typing import Any, Final, NoReturn

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from sidecar.core.errors import BadRequest, ErrorReason, SidecarError, Status

DOMAIN: Final = "sidecar"
CODES: Final[dict[Status, int]] = {status: code_pb2.Code.Value(status.value) for status in Status}
GRPC_CODES: Final[dict[int, grpc.StatusCode]] = {code.value[0]: code for code in grpc.StatusCode}


class Incident(SidecarError):
    """Something unforeseen: the caller is told `incident_id` and nothing else; the log says where it happened."""

    def __init__(self, incident_id: str) -> None:
        super().__init__(ErrorReason.INTERNAL)
        self.incident_id = incident_id


def rich_status(error: SidecarError) -> status_pb2.Status:
    """google.rpc.Status with ErrorInfo, RetryInfo where a retry helps, and BadRequest for fields."""
    status = status_pb2.Status(code=CODES[error.status], message=error.text)
    info = error_details_pb2.ErrorInfo(reason=error.reason.value, domain=DOMAIN)
    if isinstance(error, Incident):
        info.metadata["incident_id"] = error.incident_id
    status.details.append(_packed(info))
    if error.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        status.details.append(_packed(retry))
    if isinstance(error, BadRequest):
        bad = error_details_pb2.BadRequest()
        for field, description in error.violations:
            bad.field_violations.add(field=field, description=description)
        status.details.append(_packed(bad))
    return status


async def refuse(call: grpc.aio.ServicerContext[Any, Any], status: status_pb2.Status) -> NoReturn:
    """End the call with that status. Always raises grpc's AbortError."""
    rich = rpc_status.to_status(status)
    await call.abort(GRPC_CODES[status.code], status.message, rich.trailing_metadata)


def _packed(
    detail: error_details_pb2.ErrorInfo | error_details_pb2.RetryInfo | error_details_pb2.BadRequest,
) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed
