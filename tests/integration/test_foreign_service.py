"""A service of another make: another interpreter where there is one, the oldest libraries that the stubs allow."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.running import running_sidecar

ROOT = Path(__file__).parents[2]
OLDEST = ("protobuf==5.29.6", "grpcio==1.71.2", "grpcio-status==1.71.2", "googleapis-common-protos")

SERVICE = """
import json, sys
import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from sidecar.api.v1 import delivery_service_pb2 as api, delivery_service_pb2_grpc as stubs, types_pb2 as types

facts = json.load(sys.stdin)
with grpc.insecure_channel(facts["target"]) as channel:
    delivery = stubs.DeliveryServiceStub(channel)

    def send(key):
        request = api.SendToUserRequest(
            isolation_key=key, message=types.Message(payload=b'{"hello":"alice"}'), expected_user_id="alice"
        )
        try:
            receipt = delivery.SendToUser(request, metadata=[("x-context-token", facts["token"])], timeout=10).receipt
            return [types.DeliveryState.Name(receipt.state), receipt.sequence]
        except grpc.RpcError as error:
            info = error_details_pb2.ErrorInfo()
            rpc_status.from_call(error).details[0].Unpack(info)
            return [error.code().name, info.reason, error.details()]

    print(json.dumps([sys.version_info[:2], [send(key) for key in facts["keys"]]]))
"""


def other_interpreter() -> str:
    """A working Python other than this one; this one where there is none."""
    for minor in (13, 12, 14, 11):
        found = shutil.which(f"python3.{minor}")
        if found and minor != sys.version_info.minor:
            check = subprocess.run([found, "-c", "import venv, ensurepip"], capture_output=True, check=False)
            if check.returncode == 0:
                return found
    return sys.executable


@pytest.fixture(scope="module")
def foreign_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("foreign")
    subprocess.run([other_interpreter(), "-m", "venv", str(folder / "venv")], check=True, capture_output=True)
    python = str(folder / "venv" / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    shutil.copytree(ROOT / "sidecar" / "api", folder / "stubs" / "sidecar" / "api")
    installed = subprocess.run([*pip, *OLDEST], capture_output=True, text=True, check=False)
    if installed.returncode != 0:
        if os.environ.get("SIDECAR_TEST_NO_SKIP") == "1":
            pytest.fail(installed.stderr)
        pytest.skip("no package index at hand for the foreign service's libraries")
    return python


@pytest.mark.timeout(180)
async def test_only_the_own_key_opens(foreign_python: str, tmp_path: Path) -> None:
    with running_sidecar(tmp_path) as sidecar:
        async with sidecar.user("alice") as alice, sidecar.user("bob") as bob:
            facts = {
                "target": sidecar.grpc_target,
                "token": alice.context_token,
                "keys": [alice.isolation_key, bob.isolation_key, "f" * 64],
            }
            process = await asyncio.create_subprocess_exec(
                foreign_python,
                "-c",
                SERVICE,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env={"PYTHONPATH": str(Path(foreign_python).parents[2] / "stubs"), "PATH": os.environ["PATH"]},
            )
            output, _ = await process.communicate(json.dumps(facts).encode())
            assert process.returncode == 0
            version, (own, existing, unknown) = json.loads(output)
            assert own == ["DELIVERY_STATE_WRITTEN", 1]
            assert existing == unknown
            assert existing[:2] == ["PERMISSION_DENIED", "ISOLATION_VIOLATION"]
            assert (await alice.frame())["data"] == {"hello": "alice"}
            assert await bob.frames_before_answer_to("probe") == []
            violations = await sidecar.audit_records("isolation_violation")
            assert len(violations) == 2
            assert version >= [3, 11]
