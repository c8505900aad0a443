"""The web client by its own tools: its tests, its checks, and what a stranger installs."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path

import pytest

from sidecar import __version__
from tests.clients.web import toolchain
from tests.clients.web.readme import block
from tests.support.running import RunningSidecar

pytestmark = pytest.mark.timeout(300)


def test_its_own_tests_pass(web: Path) -> None:
    files = [str(path.relative_to(web)) for path in sorted((web / "build" / "test").glob("*.test.js"))]
    assert len(files) > 3
    assert "\n# fail 0\n" in toolchain.run("node", "--test", "--test-reporter=tap", *files)


def test_a_page_loads_less_than_6_kilobytes(web: Path) -> None:
    toolchain.run("node", "scripts/size.mjs")


def test_the_demo_page_runs_on_this_client(web: Path) -> None:
    toolchain.run("npm", "run", "--silent", "generate:check")


def test_its_version_is_the_protocols(web: Path) -> None:
    package = json.loads((web / "package.json").read_text())
    assert package["version"] == __version__
    assert f'VERSION = "{__version__}"' in (web / "dist" / "index.js").read_text()
    assert "dependencies" not in package


def test_no_lock_file_names_a_host() -> None:
    lock = json.loads((toolchain.FOLDER / "package-lock.json").read_text())
    assert [name for name, package in lock["packages"].items() if "resolved" in package] == []


async def test_what_is_packed_works_in_an_empty_project(web: Path, tmp_path: Path, sidecar: RunningSidecar) -> None:
    project = install(packed(web, tmp_path), tmp_path / "project")
    (project / "listen.mjs").write_text(block("process.env.SIDECAR_URL"))
    (project / "types.mts").write_text(TYPED)
    compiler = web / "node_modules" / "typescript" / "bin" / "tsc"
    options = ("--noEmit", "--strict", "--module", "nodenext", "--lib", "es2022,dom")
    toolchain.run("node", str(compiler), *options, "types.mts", folder=project)
    environment = os.environ | {
        "SIDECAR_URL": sidecar.websocket_url,
        "USER_TOKEN": sidecar.user_token("node", "packed", session_id="packed"),
    }
    listening = await asyncio.create_subprocess_exec(
        "node", "listen.mjs", cwd=project, env=environment, stdout=asyncio.subprocess.PIPE
    )
    async with sidecar.service() as service:
        key, token = await context_of(sidecar, "node", "packed")
        await service.send(key, token, b'"it works"')
    said, _ = await asyncio.wait_for(listening.communicate(), 30)
    assert (listening.returncode, said) == (0, b"it works\n")


TYPED = """
import { connect, ConnectionEnded, type Message } from "@ws-sidecar/web";
const connection = connect("ws://127.0.0.1/", { token: () => "token", resume: null });
export const parts: AsyncIterable<Message> = connection.ask({ any: "thing" }, { event: "question" });
export const never: number = new ConnectionEnded(4503, "taken_over").code;
// @ts-expect-error -- a token there must be
connect("ws://127.0.0.1/", {});
"""


def packed(web: Path, folder: Path) -> Path:
    """What npm makes of a copy of the client, building it first."""
    copy = folder / "copy"
    ignored = shutil.ignore_patterns("node_modules", "dist", "build", "*.tgz")
    shutil.copytree(web, copy, ignore=ignored)
    (copy / "node_modules").symlink_to(web / "node_modules")
    toolchain.run("npm", "pack", "--loglevel=error", folder=copy)
    (archive,) = copy.glob("*.tgz")
    return archive


def install(archive: Path, project: Path) -> Path:
    """An empty project with the archive in it, and `ws`, from what is here already: no registry is asked."""
    project.mkdir()
    (project / "package.json").write_text('{"name": "empty", "private": true, "type": "module"}')
    toolchain.run("npm", "install", "--offline", "--no-audit", "--no-fund", str(archive), folder=project)
    (project / "node_modules" / "ws").symlink_to(toolchain.FOLDER / "node_modules" / "ws")
    return project


async def context_of(sidecar: RunningSidecar, user_id: str, tenant_id: str) -> tuple[str, str]:
    """The key and a token of that user's only context, once there is one."""
    from sidecar.api.v1.admin_service_pb2 import ListManagersRequest
    from sidecar.api.v1.context_service_pb2 import ExchangeContextTokenRequest

    async with sidecar.service() as service, asyncio.timeout(20):
        while True:
            request = ListManagersRequest(user_id=user_id, tenant_id=tenant_id)
            answer = await service.admin.ListManagers(request, metadata=service.as_operator)
            if answer.managers:
                break
        (manager,) = answer.managers
        grant = await service.context.ExchangeContextToken(
            ExchangeContextTokenRequest(
                user_token=sidecar.user_token(user_id, tenant_id), connection_id=manager.context.connection_id
            ),
            metadata=service.as_operator,
        )
    return manager.isolation_key, grant.context_token
