"""Revoked families: at once in memory, then on the disk, and no longer than needed."""

from __future__ import annotations

import json
import stat
import threading
from pathlib import Path

import pytest

from sidecar.core.errors import ErrorReason, ResourceExhausted, Unavailable
from sidecar.security.files import SettingError
from sidecar.security.revocations import MAX_ENTRIES, SLACK_LINES, RevocationList
from tests.security.forge import NOW


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kept" / "revoked.jsonl"


@pytest.fixture
def revoked(path: Path) -> RevocationList:
    path.parent.mkdir()
    return RevocationList(path, now=NOW)


def entries(path: Path) -> list[tuple[str, int]]:
    return [(entry["family"], entry["until"]) for entry in map(json.loads, path.read_text().splitlines())]


def test_a_family_is_revoked_at_once_and_until_its_end() -> None:
    revoked = RevocationList()
    revoked.add("f1", NOW + 10)
    revoked.add("f2", NOW + 20)
    assert ("f1" in revoked, "f2" in revoked, "f3" in revoked, len(revoked)) == (True, True, False, 2)
    revoked.prune(NOW + 9.9)
    assert len(revoked) == 2
    revoked.prune(NOW + 10)
    assert ("f1" in revoked, "f2" in revoked) == (False, True)
    revoked.flush()


def test_a_family_whose_context_has_ended_is_forgotten_and_makes_room() -> None:
    revoked = RevocationList(max_entries=1)
    revoked.add("f1", NOW + 10)
    revoked.discard("f1")
    revoked.discard("f1")
    assert "f1" not in revoked
    revoked.add("f2", NOW + 10)
    assert ("f2" in revoked, len(revoked)) == (True, 1)


def test_the_later_end_counts() -> None:
    revoked = RevocationList()
    for until in (NOW + 10, NOW + 20, NOW + 15):
        revoked.add("f1", until)
    revoked.prune(NOW + 19)
    assert "f1" in revoked


def test_the_list_is_bounded_and_says_so() -> None:
    revoked = RevocationList(max_entries=2)
    revoked.add("f1", NOW + 10)
    revoked.add("f2", NOW + 20)
    with pytest.raises(ResourceExhausted) as caught:
        revoked.add("f3", NOW + 30)
    assert (caught.value.reason, caught.value.retry_after_s) == (ErrorReason.RATE_LIMITED, 60.0)
    assert "f3" not in revoked
    revoked.add("f1", NOW + 40)
    revoked.prune(NOW + 20)
    revoked.add("f3", NOW + 30)
    assert "f3" in revoked
    assert MAX_ENTRIES == 100_000


def test_what_was_flushed_is_there_after_a_restart(path: Path, revoked: RevocationList) -> None:
    revoked.add("f1", NOW + 10)
    revoked.add("f2", NOW + 20)
    assert entries(path) == []
    revoked.flush()
    revoked.flush()
    revoked.add("f3", NOW + 30)
    revoked.flush()
    assert entries(path) == [("f1", NOW + 10), ("f2", NOW + 20), ("f3", NOW + 30)]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = RevocationList(path, now=NOW + 5)
    assert [name for name in ("f1", "f2", "f3") if name in again] == ["f1", "f2", "f3"]
    again.add("f4", NOW + 40)
    again.flush()
    assert entries(path)[-1] == ("f4", NOW + 40)


def test_nothing_to_write_writes_nothing(path: Path, revoked: RevocationList) -> None:
    revoked.add("f1", NOW + 10)
    revoked.flush()
    before = path.stat()
    revoked.add("f1", NOW + 10)
    revoked.add("f1", NOW)
    revoked.flush()
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_a_start_keeps_only_what_is_still_needed(path: Path, revoked: RevocationList) -> None:
    for family, until in (("old", NOW + 10), ("f1", NOW + 20), ("f1", NOW + 30)):
        revoked.add(family, until)
        revoked.flush()
    assert len(entries(path)) == 3
    again = RevocationList(path, now=NOW + 10)
    assert entries(path) == [("f1", NOW + 30)]
    assert ("old" in again, "f1" in again) == (False, True)


def test_of_two_lines_of_a_family_the_later_end_counts(path: Path, revoked: RevocationList) -> None:
    revoked.flush()
    path.write_text("".join(f'{{"family":"f1","until":{NOW + end}}}\n' for end in (20, 10)))
    assert "f1" in RevocationList(path, now=NOW + 15)


def test_a_file_written_anew_is_added_to_again(path: Path, revoked: RevocationList) -> None:
    for until in (NOW + 10, NOW + 20):
        revoked.add("f1", until)
        revoked.flush()
    again = RevocationList(path, now=NOW)
    written = path.stat().st_ino
    again.add("f2", NOW + 10)
    again.flush()
    assert (path.stat().st_ino, entries(path)) == (written, [("f1", NOW + 20), ("f2", NOW + 10)])


def test_the_file_is_made_small_again_while_running(path: Path, revoked: RevocationList) -> None:
    for number in range(SLACK_LINES):
        revoked.add(f"f{number}", NOW + 10)
    revoked.flush()
    revoked.add("kept", NOW + 20)
    revoked.prune(NOW + 10)
    revoked.flush()
    assert len(entries(path)) == SLACK_LINES + 1
    revoked.add("more", NOW + 20)
    revoked.add("last", NOW + 20)
    for number in range(6):
        revoked.add("last", NOW + 21 + number)
    revoked.flush()
    assert entries(path) == [("kept", NOW + 20), ("more", NOW + 20), ("last", NOW + 26)]


@pytest.mark.parametrize("tail", ['{"family":"f2","un', '{"family":"f2","until":1}', "\x00"])
def test_a_line_that_was_never_finished_is_left_out(path: Path, revoked: RevocationList, tail: str) -> None:
    revoked.add("f1", NOW + 10)
    revoked.flush()
    with path.open("a") as file:
        file.write(tail)
    again = RevocationList(path, now=NOW)
    assert len(again) == 1
    assert entries(path) == [("f1", NOW + 10)]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "x",
        "[]",
        "{}",
        '{"family":"f","until":1.5}',
        '{"family":"f","until":true}',
        '{"family":"f","until":-1}',
        '{"family":"f","until":"1"}',
        '{"family":"","until":1}',
        '{"family":"f f","until":1}',
        '{"family":7,"until":1}',
        '{"family":"f","family":"g","until":1}',
        '{"family":"f","until":1}{"family":"g","until":1}',
    ],
)
def test_a_damaged_line_stops_the_start(path: Path, revoked: RevocationList, line: str) -> None:
    revoked.add("f1", NOW + 10)
    revoked.flush()
    with path.open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(SettingError) as caught:
        RevocationList(path, now=NOW)
    assert str(caught.value) == ("context_tokens.revocation_file: line 2 must be a revocation that the sidecar wrote")


def test_a_file_that_others_can_touch_stops_the_start(path: Path, revoked: RevocationList) -> None:
    revoked.flush()
    path.chmod(0o644)
    with pytest.raises(SettingError, match="must not be open to group or others"):
        RevocationList(path, now=NOW)


def test_a_place_that_cannot_be_written_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="cannot be written: No such file or directory"):
        RevocationList(tmp_path / "absent" / "revoked", now=NOW)


def test_more_than_the_limit_that_is_still_needed_stops_the_start(path: Path, revoked: RevocationList) -> None:
    for number in range(3):
        revoked.add(f"f{number}", NOW + 10 + number)
    revoked.flush()
    with pytest.raises(SettingError, match="must hold at most 2 families"):
        RevocationList(path, now=NOW, max_entries=2)
    assert len(RevocationList(path, now=NOW + 10, max_entries=2)) == 2


def test_a_disk_that_fails_loses_nothing(path: Path, revoked: RevocationList) -> None:
    revoked.add("f1", NOW + 10)
    revoked.flush()
    aside = path.parent.with_name("aside")
    path.parent.rename(aside)
    revoked.add("f2", NOW + 20)
    for _ in range(2):
        with pytest.raises(Unavailable) as caught:
            revoked.flush()
        assert caught.value.reason is ErrorReason.STORAGE_UNAVAILABLE
        assert caught.value.__suppress_context__
    assert "f2" in revoked
    aside.rename(path.parent)
    with path.open("a") as file:
        file.write('{"fam')
    revoked.flush()
    assert entries(path) == [("f1", NOW + 10), ("f2", NOW + 20)]


def test_many_may_flush_at_once(path: Path, revoked: RevocationList) -> None:
    threads = []
    for number in range(20):
        revoked.add(f"f{number}", NOW + 10)
        threads.append(threading.Thread(target=revoked.flush))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert sorted(entries(path)) == sorted((f"f{number}", NOW + 10) for number in range(20))
