"""The Node client: its own tests, its README as written, and what npm pack gives, in an empty project."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest

from tests.clients.node.conftest import CLIENT, ROOT, npm
from tests.clients.node.programs import output, running
from tests.clients.python.agents import answer_of, text_of, user_of
from tests.support.running import RunningSidecar

README: Final = (CLIENT / "README.md").read_text(encoding="utf-8")
BLOCKS: Final = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.mark.timeout(180)
def test_its_own_tests(built: Path) -> None:
    npm(built, "test")


def test_its_version_is_the_contracts(built: Path) -> None:
    package = json.loads((built / "package.json").read_text())
    python = tomllib.loads((ROOT / "clients" / "python" / "pyproject.toml").read_text())
    constant = re.search(r'VERSION = "(.*)"', (built / "src" / "version.ts").read_text())
    assert constant is not None
    assert constant[1] == package["version"] == python["project"]["version"]


def test_its_lock_names_no_registry(built: Path) -> None:
    assert "resolved" not in (built / "package-lock.json").read_text()


# The README


def test_every_block_is_run_here() -> None:
    functions = [re.findall(r"^export async function (\w+)", text, re.MULTILINE) for _, text in BLOCKS]
    assert functions == [[], ["greet"], ["streamAnswer"], ["notify"]]
    assert {language for language, _ in BLOCKS} == {"js"}


def test_the_quick_start_is_ten_lines() -> None:
    assert len([line for line in BLOCKS[0][1].splitlines() if line]) <= 10


@pytest.mark.timeout(180)
async def test_the_quick_start(project: Path, sidecar: RunningSidecar) -> None:
    (project / "quick-start.mjs").write_text(BLOCKS[0][1], encoding="utf-8")
    before = len(await sidecar.audit_records("agent_attached"))
    with running(project, sidecar, "quick-start.mjs", says=""):
        while len(await sidecar.audit_records("agent_attached")) == before:
            pass  # each look is a call that takes its turn
        async with user_of(sidecar, "alice") as alice:
            await alice.send("why?")
            assert text_of(await answer_of(alice)) == "alice asked: why? "


def the(project: Path, name: str) -> str:
    """A program that begins with the function of that name, from its block."""
    (text,) = [text for _, text in BLOCKS if f"async function {name}(" in text]
    (project / f"{name}.mjs").write_text(text, encoding="utf-8")
    return (
        f'import {{ {name} }} from "./{name}.mjs"; import {{ SidecarClient }} from "@ws-sidecar/client";\n'
        f"const [isolationKey, contextToken] = process.argv.slice(2);\n"
        f"const target = {{ isolationKey, contextToken }};\n"
    )


@pytest.mark.timeout(180)
async def test_greet(project: Path, sidecar: RunningSidecar) -> None:
    program = the(project, "greet") + (
        'console.log(await greet(isolationKey, contextToken, "alice"));\n'
        'console.log(await greet(isolationKey, contextToken, "bob").catch((error) => error.reason));\n'
        "process.exit();"
    )
    async with sidecar.user("alice") as alice:
        said = await asyncio.to_thread(output, project, sidecar, program, alice.isolation_key, alice.context_token)
        assert said == "1\nISOLATION_VIOLATION\n"
        assert (await alice.frame())["data"] == {"text": "hello"}


@pytest.mark.timeout(180)
async def test_stream_answer(project: Path, sidecar: RunningSidecar) -> None:
    """It ends by itself: a client that is closed holds no process."""
    program = the(project, "streamAnswer") + (
        'const receipts = await streamAnswer(target, ["it", "is", "warm"]);\n'
        "console.log(receipts.map(({ sequence }) => sequence).join());"
    )
    async with sidecar.user("alice") as alice:
        keys = alice.isolation_key, alice.context_token
        answering = asyncio.create_task(asyncio.to_thread(output, project, sidecar, program, *keys))
        frames = [await alice.frame() for _ in range(4)]
        await alice.socket.send('{"type":"ack","sequence":4}')
        assert await answering == "the client has it all\n1,2,3\n"
    assert [frame["data"] for frame in frames] == ["it", "is", "warm", ""]


@pytest.mark.timeout(180)
async def test_notify(project: Path, sidecar: RunningSidecar) -> None:
    program = the(project, "notify") + (
        "await using(async (sidecar) => {\n"
        "  console.log(await notify(sidecar, target));\n"
        '  console.log(await notify(sidecar, { ...target, contextToken: "no" }));\n'
        '  console.log(await notify(sidecar, { ...target, isolationKey: "other" }));\n'
        "});\n"
        "async function using(body) {\n"
        "  const sidecar = new SidecarClient();\n"
        "  await body(sidecar);\n"
        "  await sidecar.close();\n"
        "}"
    )
    async with sidecar.user("alice") as alice:
        said = await asyncio.to_thread(output, project, sidecar, program, alice.isolation_key, alice.context_token)
    assert said.splitlines() == ["sent", "get another token: TOKEN_INVALID", "refused"]


# The artefact

USE: Final = """
import { Agent, SidecarClient, VERSION } from "@ws-sidecar/client";
import type { Receipt, Target } from "@ws-sidecar/client";

export async function send(target: Target): Promise<Receipt> {
  const client = new SidecarClient({ endpoint: "unix:/run/sidecar.sock", timeoutS: undefined });
  const agent: Agent = new Agent("answers", { client }).onMessage("ask", async (context, message, signal) => {
    await message.reply({ eventType: VERSION }).send({ json: { user: context.user.userId, over: signal.aborted } });
  });
  await agent.stop();
  // @ts-expect-error a message has one content
  await client.sendToUser(target, { json: 1, text: "1" });
  return client.sender().send(target, { text: "hello", headers: { a: "b" } }, { waitForAckS: 1 });
}
"""


@pytest.mark.timeout(180)
def test_its_types_come_with_it(built: Path, project: Path) -> None:
    (project / "use.mts").write_text(USE, encoding="utf-8")
    command = [str(built / "node_modules" / ".bin" / "tsc"), "--noEmit", "--strict", "--exactOptionalPropertyTypes"]
    more = ["--module", "nodenext", "--target", "es2022", "--lib", "es2023,esnext.disposable", "--types", "node"]
    roots = ["--typeRoots", str(built / "node_modules" / "@types")]
    done = subprocess.run(
        [*command, *more, *roots, "use.mts"], cwd=project, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.timeout(180)
def test_it_holds_what_it_should_and_nothing_else(project: Path) -> None:
    installed = project / "node_modules" / "@ws-sidecar" / "client"
    assert {path.name for path in installed.iterdir()} == {"LICENSE", "README.md", "dist", "package.json"}
    kinds = {"".join(path.suffixes) for path in (installed / "dist").rglob("*") if path.is_file()}
    assert kinds == {".js", ".d.ts"}
    manifest: dict[str, Any] = json.loads((installed / "package.json").read_text())
    assert set(manifest["dependencies"]) == {"@bufbuild/protobuf", "@grpc/grpc-js"}
    assert manifest["peerDependenciesMeta"] == {"@opentelemetry/api": {"optional": True}}
    assert not (project / "node_modules" / "@opentelemetry").exists()
