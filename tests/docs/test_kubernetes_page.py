"""docs/kubernetes.md: its manifest is held against the settings, the image and the client, and its sidecar runs."""

from __future__ import annotations

import re
import shlex
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from sidecar.config import Config
from sidecar.security.files import forbidden_bits
from sidecar_client.channel import ENDPOINT_VARIABLE, SERVICE_TOKEN_VARIABLE
from tests.docs.manifest import documents
from tests.docs.pages import ROOT, blocks, table
from tests.docs.stage import stage
from tests.support.dockerfile import parse

PAGE: Final = ROOT / "docs" / "kubernetes.md"
(BLOCK,) = blocks("yaml", pages=(PAGE,))
CONFIG_MAP, STATEFUL_SET, SERVICE = documents(BLOCK.text)
((CONFIG_FILE, SETTINGS),) = CONFIG_MAP["data"].items()
POD: Final[dict[str, Any]] = STATEFUL_SET["spec"]["template"]["spec"]
(SIDECAR,) = POD["initContainers"]
(APPLICATION,) = POD["containers"]
IMAGE: Final = next(each for each in parse((ROOT / "Dockerfile").read_text()) if each.name == "runtime")
SERVICES_OWN_END_S: Final = 30


def config() -> Config:
    return Config.model_validate(tomllib.loads(SETTINGS))


def mounts() -> dict[str, str]:
    """Where each volume of the sidecar's is."""
    return {mount["name"]: mount["mountPath"] for mount in SIDECAR["volumeMounts"]}


def paths(settings: Any) -> Iterator[Path]:
    """Every file that the settings name."""
    values = settings.values() if isinstance(settings, dict) else settings if isinstance(settings, list) else ()
    for value in values:
        if isinstance(value, str) and value.startswith("/"):
            yield Path(value)
        yield from paths(value)


async def test_its_sidecar_runs_with_its_arguments_and_its_probes_succeed() -> None:
    command = shlex.join([".venv/bin/sidecar", *SIDECAR["args"]])
    with tempfile.TemporaryDirectory(prefix="docs-") as folder:
        async with stage(Path(folder), SETTINGS) as scene:
            await scene.serve(command.replace(f"{mounts()['config']}/{CONFIG_FILE}", "sidecar.toml"))
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                asked = shlex.join(SIDECAR[probe]["exec"]["command"]).replace("8081", str(scene.ops_port))
                outcome = await scene.run(f".venv/bin/{asked}")
                assert (outcome.code, outcome.output) == (0, "ready\n")


def test_it_is_a_native_sidecar_that_the_service_waits_for() -> None:
    assert SIDECAR["restartPolicy"] == "Always"
    assert SIDECAR["startupProbe"]["exec"] == SIDECAR["readinessProbe"]["exec"]
    assert SIDECAR["args"] == ["serve", "--config", f"{mounts()['config']}/{CONFIG_FILE}"]


def test_there_is_time_for_the_service_and_for_the_drain() -> None:
    assert POD["terminationGracePeriodSeconds"] >= SERVICES_OWN_END_S + config().drain.grace_s


def test_ports_and_labels_lead_to_each_other() -> None:
    (port,), (offered,) = SIDECAR["ports"], SERVICE["spec"]["ports"]
    assert port["containerPort"] == config().websocket.address.port
    assert config().websocket.address.host == "0.0.0.0"
    assert offered["targetPort"] == port["name"]
    spec = STATEFUL_SET["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert SERVICE["spec"]["selector"] == spec["selector"]["matchLabels"] == labels
    assert SERVICE["metadata"]["name"] == spec["serviceName"]
    assert config().ops.address.is_loopback


def test_every_file_lies_on_a_volume_and_what_is_written_on_one_that_lasts() -> None:
    places = mounts()
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    claims = {claim["metadata"]["name"] for claim in STATEFUL_SET["spec"]["volumeClaimTemplates"]}
    assert set(places) == set(volumes) | claims
    secrets = {path.name for path in paths(tomllib.loads(SETTINGS)) if path.parent == Path(places["secrets"])}
    assert secrets == {key for key, _ in table(PAGE, "key", "what it is")}
    written = {path for path in paths(tomllib.loads(SETTINGS)) if path.name not in secrets}
    assert all(path.parent == Path(places["state"]) for path in written)
    assert config().storage.kind == "sqlite"
    assert config().storage.key_file == Path(places["secrets"], "outbox-key")
    assert volumes["config"]["configMap"]["name"] == CONFIG_MAP["metadata"]["name"]


def test_the_secrets_reach_the_images_user_and_are_taken() -> None:
    user, _, group = IMAGE.only("USER").partition(":")
    context = SIDECAR["securityContext"] | POD["securityContext"]
    ids = [str(context[name]) for name in ("runAsUser", "runAsGroup", "fsGroup")]
    assert ids == [user, group, group]
    (mode,) = (each["secret"]["defaultMode"] for each in POD["volumes"] if "secret" in each)
    assert mode & 0o040
    assert not mode & forbidden_bits(0, int(user))
    # Kubernetes opens the files of a volume to fsGroup; those that the sidecar made would be refused.
    assert POD["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"


def test_the_state_lies_where_the_image_may_write() -> None:
    (volume,) = re.findall(r'"([^"]+)"', IMAGE.only("VOLUME"))
    assert mounts()["state"] == volume == IMAGE.only("WORKDIR")
    assert SIDECAR["securityContext"]["readOnlyRootFilesystem"] is True


def test_the_service_is_told_where_the_sidecar_is() -> None:
    environment = {each["name"]: each.get("value") for each in APPLICATION["env"]}
    assert environment == {ENDPOINT_VARIABLE: config().grpc.listen, SERVICE_TOKEN_VARIABLE: None}


@pytest.mark.parametrize(
    "text",
    ["a: b: c\n", "a: 1\na: 2\n", "a:\n", "a: 'b'\n", "a: {b: c}\n", "- a\n", "a: 1\n   b: 2\n", "a: 08\n", "\ta: 1\n"],
)
def test_what_the_reader_does_not_know_is_an_error(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whichever
        documents(text)
