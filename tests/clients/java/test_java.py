"""The Java client: its own tests, the README as it is written, the artefact in an empty project."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from pathlib import Path
from typing import Final

import pytest

import sidecar_client
from scripts.clients import building
from tests.clients.java.maven import FAST_START, JAVA, compiled, maven, repository_beside, run
from tests.clients.python.agents import answer_of, text_of, user_of, within
from tests.support.running import RunningSidecar

README: Final = (JAVA / "README.md").read_text(encoding="utf-8")
BLOCKS: Final = {
    re.findall(r"^public class (\w+)", text, re.MULTILINE)[0]: text
    for text in re.findall(r"^```java\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
}
TRY: Final = """
import dev.wssidecar.client.*;
import java.util.List;

public class Try {
  public static void main(String[] arguments) {
    String key = arguments[0];
    String token = arguments[1];
    String user = arguments[2];
    System.out.println(Greeter.greet(key, token, user));
    Recipient to = Recipient.of(key, token).expecting(user);
    System.out.println(StreamAnswer.send(to, List.of("it", "is", "warm")).size());
    try (SidecarClient sidecar = SidecarClient.create()) {
      System.out.println(Notifier.notify(sidecar, to));
      System.out.println(Notifier.notify(sidecar, Recipient.of("0".repeat(64), token)));
      System.out.println(Notifier.notify(sidecar, Recipient.of(key, "x")));
    }
  }
}
"""
USE: Final = """
import dev.wssidecar.client.Message;
import dev.wssidecar.client.Recipient;
import dev.wssidecar.client.SidecarClient;

public class Use {
  public static void main(String[] arguments) {
    try (SidecarClient sidecar = SidecarClient.create()) {
      Recipient to = Recipient.of(arguments[0], arguments[1]).expecting("alice");
      System.out.println(SidecarClient.VERSION + " " + sidecar.sendToUser(to, Message.text("hi")).sequence());
    }
  }
}
"""
PLUGINS: Final = {
    "resources": "3.4.0",
    "compiler": "3.15.0",
    "surefire": "3.5.6",
    "jar": "3.5.1",
    "dependency": "3.11.0",
}
EMPTY_PROJECT: Final = f"""
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>example</groupId><artifactId>empty</artifactId><version>1</version>
  <properties>
    <maven.compiler.release>17</maven.compiler.release>
    <project.build.sourceEncoding>UTF-8</project.build.sourceEncoding>
  </properties>
  <dependencies>{re.findall(r"<dependency>.*?</dependency>", README, re.DOTALL)[0]}</dependencies>
  <build><plugins>{
    "".join(
        f"<plugin><artifactId>maven-{name}-plugin</artifactId><version>{version}</version></plugin>"
        for name, version in PLUGINS.items()
    )
}</plugins></build>
</project>
"""

pytestmark = [pytest.mark.usefixtures("built"), pytest.mark.timeout(600)]


def test_its_own_tests() -> None:
    with building("java"):
        maven("test", pom=JAVA / "pom.xml")


def test_its_version_is_the_others() -> None:
    assert f"<version>{sidecar_client.__version__}</version>" in README
    client = (JAVA / "src/main/java/dev/wssidecar/client/SidecarClient.java").read_text(encoding="utf-8")
    assert f'VERSION = "{sidecar_client.__version__}"' in client


def test_the_quick_start_is_ten_lines() -> None:
    assert len([line for line in BLOCKS["QuickStart"].splitlines() if line]) <= 10


async def test_the_quick_start(sidecar: RunningSidecar, tmp_path: Path) -> None:
    (tmp_path / "QuickStart.java").write_text(BLOCKS["QuickStart"])
    command = ["java", *FAST_START, "-cp", compiled(tmp_path), "QuickStart"]
    before = len(await sidecar.audit_records("agent_attached"))
    agent = await asyncio.create_subprocess_exec(*command, env=environment(sidecar))
    while len(await sidecar.audit_records("agent_attached")) == before:
        assert agent.returncode is None
    async with user_of(sidecar, "alice") as alice:
        await alice.send("why?")
        assert text_of(await answer_of(alice)) == 'alice asked: "why?"'
    agent.terminate()
    assert await within(agent.wait()) == 128 + signal.SIGTERM


async def test_the_readme(sidecar: RunningSidecar, tmp_path: Path) -> None:
    for name, text in (BLOCKS | {"Try": TRY}).items():
        (tmp_path / f"{name}.java").write_text(text)
    path = compiled(tmp_path)
    async with user_of(sidecar, "alice") as alice:
        command = ["java", *FAST_START, "-cp", path, "Try", alice.isolation_key, alice.context_token, "alice"]
        trying = await asyncio.create_subprocess_exec(*command, stdout=-1, env=environment(sidecar))
        heard = [getattr(await within(anext(alice)), "data", None) for _ in range(6)]
        said, _ = await within(trying.communicate())
    assert heard == [{"text": "hello"}, "it", "is", "warm", "", "news"]
    assert said.decode().splitlines() == [
        "1",
        "the client has it all",
        "3",
        "sent",
        "refused",
        "get another token: TOKEN_INVALID",
    ]


async def test_the_artefact_in_an_empty_project(sidecar: RunningSidecar, tmp_path: Path) -> None:
    repository = f"-Dmaven.repo.local={repository_beside(tmp_path)}"
    with building("java"):
        maven("install", "-DskipTests", repository, pom=JAVA / "pom.xml")
    project = tmp_path / "project"
    (project / "src/main/java").mkdir(parents=True)
    (project / "src/main/java/Use.java").write_text(USE)
    (project / "pom.xml").write_text(EMPTY_PROJECT)
    maven("package", "dependency:copy-dependencies", "-DincludeScope=runtime", repository, pom=project / "pom.xml")
    path = f"{project / 'target/classes'}:{project / 'target/dependency'}/*"
    assert not list((project / "target/dependency").glob("opentelemetry*"))
    async with sidecar.user("alice") as alice:
        command = ["java", *FAST_START, "-cp", path, "Use", alice.isolation_key, alice.context_token]
        said = await asyncio.to_thread(lambda: run(*command, folder=project, environment=environment(sidecar)))
        assert said == f"{sidecar_client.__version__} 1\n"
        assert (await alice.frame())["data"] == "hi"


def environment(sidecar: RunningSidecar) -> dict[str, str]:
    """Where that sidecar is, as programs read it."""
    told = {"SIDECAR_GRPC_ENDPOINT": sidecar.grpc_target, "SIDECAR_SERVICE_TOKEN": sidecar.service_token}
    return os.environ | told
