"""The built Java client, its examples, and the running sidecar that they are tried against."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.clients.java.maven import JAVA, TOOLS, building, maven
from tests.support.running import RunningSidecar, running_sidecar
from tests.support.tools import lacking


@pytest.fixture(scope="session")
def built() -> None:
    """The client, its conformance runner and the examples, packaged."""
    for tool in TOOLS:
        if shutil.which(tool) is None:
            lacking(f"{tool}, for the Java client,")
    with building():
        maven("package", "-DskipTests", pom=JAVA / "reactor.xml")


@pytest.fixture(scope="session")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSidecar]:
    with running_sidecar(tmp_path_factory.mktemp("clients-java")) as running:
        yield running
