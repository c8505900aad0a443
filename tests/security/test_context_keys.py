"""The key file of the context tokens: made once, private, rotated without losing a living token."""

from __future__ import annotations

import json
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from sidecar.security.context_keys import KEEP_RETIRED_S, MAX_RING, ContextTokenKeys, KeyRing
from sidecar.security.files import SettingError
from tests.security.forge import NOW

DAY = 24 * 3600


def loaded(path: Path, now: float = NOW) -> ContextTokenKeys:
    return ContextTokenKeys(path, now=now)


def rule_of(path: Path) -> str:
    with pytest.raises(SettingError) as caught:
        loaded(path)
    assert caught.value.setting == "context_tokens.key_file"
    return caught.value.rule


def kids(keys: ContextTokenKeys) -> list[str]:
    return [key.kid for key in keys.ring.keys]


def test_the_file_is_made_private_on_first_start_and_read_on_the_next(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    first = loaded(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]
    second = loaded(path, now=NOW + 60)
    assert second.ring == first.ring
    assert second.isolation_secret == first.isolation_secret
    assert len(first.isolation_secret) == 32


def test_no_two_files_are_alike(tmp_path: Path) -> None:
    first, second = loaded(tmp_path / "1"), loaded(tmp_path / "2")
    assert first.isolation_secret != second.isolation_secret
    assert first.ring.keys[0].secret != second.ring.keys[0].secret
    assert first.ring.keys[0].secret != first.isolation_secret


def test_of_many_that_start_at_once_all_use_one_file(tmp_path: Path) -> None:
    made: list[KeyRing] = []
    gate = threading.Barrier(8)

    def start() -> None:
        gate.wait()
        made.append(loaded(tmp_path / "keys.json").ring)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8
    assert all(ring == made[0] for ring in made)


def test_keys_may_stay_in_memory() -> None:
    keys = ContextTokenKeys(None, now=NOW)
    first = kids(keys)
    assert keys.rotate(NOW) == keys.ring.keys[-1].kid
    assert kids(keys)[:1] == first


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "keys.json"
    loaded(path)
    path.chmod(mode)
    assert rule_of(path) == "the file must not be open to group or others (mode 0600)"


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    assert rule_of(tmp_path / "absent" / "keys.json") == "the file cannot be written: No such file or directory"
    (tmp_path / "dangling").symlink_to(tmp_path / "absent")
    assert rule_of(tmp_path / "dangling") == "the file cannot be read: No such file or directory"


SECRET_TEXT = "A" * 43
KEY = {"kid": "k1", "secret": SECRET_TEXT, "created_at": NOW}
DOCUMENT: dict[str, Any] = {"version": 1, "isolation_secret": SECRET_TEXT, "keys": [KEY]}


@pytest.mark.parametrize(
    "document",
    [
        pytest.param("", id="empty"),
        pytest.param("{", id="torn"),
        pytest.param({}, id="nothing"),
        pytest.param(DOCUMENT | {"version": 2}, id="version"),
        pytest.param(DOCUMENT | {"keys": []}, id="no keys"),
        pytest.param(DOCUMENT | {"keys": KEY}, id="keys an object"),
        pytest.param(DOCUMENT | {"keys": ["k1"]}, id="a key a string"),
        pytest.param(DOCUMENT | {"keys": [KEY, KEY]}, id="kid repeated"),
        pytest.param(DOCUMENT | {"keys": [KEY | {"kid": f"k{n}"} for n in range(MAX_RING + 1)]}, id="too many"),
        pytest.param(DOCUMENT | {"keys": [KEY | {"kid": 1}]}, id="kid a number"),
        pytest.param(DOCUMENT | {"keys": [KEY | {"kid": "../k"}]}, id="kid no identifier"),
        pytest.param(DOCUMENT | {"keys": [KEY | {"created_at": 1.5}]}, id="created_at a float"),
        pytest.param(DOCUMENT | {"keys": [KEY | {"created_at": True}]}, id="created_at true"),
        pytest.param(DOCUMENT | {"keys": [KEY | {"created_at": -1}]}, id="created_at negative"),
        pytest.param(DOCUMENT | {"keys": [KEY | {"secret": SECRET_TEXT[1:]}]}, id="short secret"),
        pytest.param(DOCUMENT | {"keys": [KEY | {"secret": "!" * 43}]}, id="secret no base64url"),
        pytest.param(DOCUMENT | {"keys": [KEY | {"secret": None}]}, id="no secret"),
        pytest.param(DOCUMENT | {"isolation_secret": "AAAA"}, id="short isolation secret"),
    ],
)
def test_a_file_that_the_sidecar_did_not_write_is_refused(tmp_path: Path, document: str | dict[str, Any]) -> None:
    path = tmp_path / "keys.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    path.chmod(0o600)
    assert rule_of(path) == "must be a key file that the sidecar wrote"


def test_a_file_as_documented_is_read(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps(DOCUMENT | {"keys": [KEY | {"kid": f"k{n}"} for n in range(MAX_RING)]}))
    path.chmod(0o600)
    keys = loaded(path)
    assert keys.ring.find("k63") is keys.ring.keys[-1]
    assert keys.ring.find("k64") is None
    assert keys.ring.find(None) is None
    assert keys.isolation_secret == bytes(32)


def test_rotation_adds_a_key_to_the_file_and_keeps_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    keys = loaded(path)
    before = keys.ring
    kid = keys.rotate(NOW + DAY)
    assert kids(keys) == [before.keys[0].kid, kid]
    assert keys.isolation_secret == before.isolation_secret
    assert keys.ring.keys[1].secret != before.keys[0].secret
    assert loaded(path).ring == keys.ring
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_retired_key_goes_when_nothing_it_signed_can_live() -> None:
    keys = ContextTokenKeys(None, now=NOW)
    first = kids(keys)[0]
    second = keys.rotate(NOW + DAY)
    third = keys.rotate(NOW + DAY + KEEP_RETIRED_S - 1)
    assert kids(keys) == [first, second, third]
    fourth = keys.rotate(NOW + DAY + KEEP_RETIRED_S)
    assert kids(keys) == [second, third, fourth]


def test_however_often_one_rotates_the_ring_is_bounded() -> None:
    keys = ContextTokenKeys(None, now=NOW)
    made = [keys.rotate(NOW) for _ in range(MAX_RING + 5)]
    assert kids(keys) == made[-MAX_RING:]
    assert KeyRing.decode(keys.ring.encode()) == keys.ring


def test_a_rotation_that_cannot_be_kept_does_not_happen(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    path = tmp_path / "keys" / "keys.json"
    keys = loaded(path)
    before = keys.ring
    path.unlink()
    path.parent.rmdir()
    with pytest.raises(SettingError, match="cannot be written"):
        keys.rotate(NOW + DAY)
    assert keys.ring is before


def test_rotation_is_due_after_a_day_and_when_the_key_is_from_the_future() -> None:
    keys = ContextTokenKeys(None, now=NOW)
    assert [keys.rotation_due(NOW + age) for age in (0, DAY - 1, DAY, -1)] == [False, False, True, True]
    keys.rotate(NOW + DAY)
    assert not keys.rotation_due(NOW + DAY)
    assert ContextTokenKeys(None, now=NOW, rotate_after_s=60).rotation_due(NOW + 60)


def test_no_secret_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    keys = loaded(path)
    document = json.loads(path.read_text())
    shown = repr(keys) + repr(keys.ring) + repr(keys.ring.keys[0])
    assert document["keys"][0]["kid"] in shown
    for secret in (document["isolation_secret"], document["keys"][0]["secret"]):
        assert secret not in shown
    assert repr(keys.isolation_secret) not in shown
    assert repr(keys.ring.keys[0].secret) not in shown
