"""The owner directory of a sidecar that runs alone."""

from __future__ import annotations

from sidecar.cluster.local import LocalOwnerDirectory


def test_every_key_is_this_processs_and_nothing_is_kept() -> None:
    owners = LocalOwnerDirectory()
    assert [owners.claim("key"), owners.claim("key"), owners.claim("other")] == [1, 1, 1]
    owners.release("key")
    owners.release("never claimed")
    assert not vars(owners)
