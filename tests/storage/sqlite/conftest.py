"""Files with something in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.storage.sqlite.stage import Stage, copied, read, run


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A file with two contexts and three messages in it, as a crash leaves it: all of it in the log."""

    async def live() -> Path:
        stage = Stage(tmp_path / "made.db")
        alice, bob = await stage.create(), await stage.create(user_id="bob")
        await stage.send(alice, b'"kept"', "m-1")
        await stage.send(bob, b'"kept"', "m-1")
        await stage.send(bob)
        copy = stage.copy(tmp_path / "kept")
        await stage.store.close()
        return copy

    return run(live)


@pytest.fixture
def closed(kept: Path, tmp_path: Path) -> Path:
    """The same after an end in order: no log."""
    path = copied(kept, tmp_path / "closed")
    read(path)
    assert not Path(f"{path}-wal").exists()
    return path
