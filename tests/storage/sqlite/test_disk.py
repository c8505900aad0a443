"""What stands on the disk: nothing that can be read without the key, and nothing of a context that has ended."""

from __future__ import annotations

from pathlib import Path
from random import Random

from sidecar.core.stored import StoredContext
from sidecar.storage.sqlite.database import open_database
from sidecar.storage.sqlite.rows import decode_context, encode_context
from sidecar.storage.sqlite.sealing import NO_KEY, Kind, Seal, Unsealable, new_key
from sidecar.storage.sqlite.store import TRUNCATE_S
from tests.storage.sqlite.stage import KEY, SEAL, Stage, leap, leaping, one_batch, read

CANARY = b"canary-4d1f"
PROMISED_S = 60.0


def disk(folder: Path) -> bytes:
    """Every byte that stands in any file of the folder."""
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def sealed_of(path: Path) -> list[bytes]:
    """Every sealed value in a copy of the file."""
    connection = open_database(path, SEAL)
    try:
        rows = [
            row
            for table in ("keys", "contexts", "states", "messages")
            for row in connection.execute(f"SELECT * FROM {table}")
        ]
    finally:
        connection.close()
    return [value for row in rows for value in row if isinstance(value, bytes)]


def keys_of(path: Path) -> set[bytes]:
    """The wrapped keys in a copy of the file."""
    return {value for value in sealed_of(path) if len(value) == len(NO_KEY)} - {NO_KEY}


@leaping
async def test_nothing_that_names_or_is_said_stands_in_clear(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    stage = Stage(folder / "outbox.db")
    canary = CANARY.decode()
    manager, socket = await stage.connect(user_id=f"{canary}-user", tenant_id=f"{canary}-tenant")
    for number in range(30):
        payload = b'"%s-payload-%d"' % (CANARY, number)
        await stage.send(manager, payload, f"{canary}-id-{number}", event_type=f"{canary}-event", critical=number == 7)
    manager.acknowledge(socket.attach_id, 5, stage.core.clock.now())
    await stage.flushed()
    written = disk(folder)
    secrets = [CANARY, manager.isolation_key.encode(), KEY, KEY.hex().encode()]
    secrets += [getattr(manager.context, name).encode() for name in ("connection_id", "session_id", "request_id")]
    assert [secret for secret in secrets if secret in written] == []
    assert socket.frames[0] not in written
    assert b"outbox" not in written  # the test can see what stands there
    assert b"ws-sidecar" not in written
    assert b"CREATE TABLE messages" in written
    await stage.store.close()
    assert CANARY not in disk(folder)
    (context,) = read(stage.path).contexts
    assert context.restored.context.user_id == f"{canary}-user"


@leaping
async def test_of_a_context_that_ended_nothing_is_left_in_time(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    stage = Stage(folder / "outbox.db")
    other = await stage.create(user_id="bob")
    await stage.send(other, b'"bob"')
    kept = sealed_of(stage.copy(tmp_path / "bob"))
    manager, socket = await stage.connect()
    for number in range(40):
        await stage.send(manager, b'"%s"' % (b"%d" % number * 50), f"m-{number}")
    manager.acknowledge(socket.attach_id, 3, stage.core.clock.now())
    await stage.flushed()
    values = [value for value in sealed_of(stage.copy(tmp_path / "both")) if value not in kept]
    assert len(values) == 1 + 1 + 1 + 40 + 37
    assert all(value in disk(folder) for value in values)
    async with one_batch():
        stage.end(manager)
    wrapped = values[0]
    assert len(wrapped) == len(NO_KEY)
    assert wrapped in disk(folder)  # in the log, for now
    async with one_batch():
        leap(TRUNCATE_S)
    assert [value for value in values if value in disk(folder)] == []
    assert [value for value in kept if value not in disk(folder)] == []
    assert 2 * TRUNCATE_S < PROMISED_S
    await stage.store.close()


@leaping
async def test_what_a_crash_left_in_the_log_goes_with_the_next_start(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "outbox.db")
    manager = await stage.create()
    (wrapped,) = keys_of(stage.copy(tmp_path / "before"))
    async with one_batch():
        stage.end(manager)
    crashed = tmp_path / "crashed"
    async with one_batch():
        life = stage.after_crash(crashed)
        assert wrapped in disk(crashed)
    assert wrapped not in disk(crashed)
    await life.store.close()
    await stage.store.close()


@leaping
async def test_no_key_is_left_by_any_order_of_ends(tmp_path: Path) -> None:
    """SQLite moves rows about; what it moves stays where it was, though the row goes and is overwritten."""
    folder = tmp_path / "store"
    folder.mkdir()
    random = Random(3)
    stage = Stage(folder / "outbox.db")
    living = []
    keys: set[bytes] = set()
    for _ in range(25):
        made = [stage.core.create(user_id=f"u-{random.randrange(10**6)}" * random.randrange(1, 9)) for _ in range(12)]
        for manager in made:
            await stage.send(manager, b'"%s"' % (b"x" * random.randrange(200)))
        living += made
        keys |= keys_of(stage.copy(tmp_path / "copy"))
        random.shuffle(living)
        while len(living) > 40:
            stage.end(living.pop())
    await stage.store.close()
    left = keys_of(stage.path)
    assert len(left) == len(living)
    assert len(keys) == 12 * 25
    assert {key for key in keys if key in disk(folder)} == left


def test_a_sealed_value_opens_in_its_own_place_alone() -> None:
    seal = Seal(new_key())
    sealed = seal.seal(Kind.MESSAGE, 1, 2, b"value")
    assert seal.open(Kind.MESSAGE, 1, 2, sealed) == b"value"
    assert sealed != seal.seal(Kind.MESSAGE, 1, 2, b"value")
    for kind, context, sequence in ((Kind.IDENTITY, 1, 2), (Kind.MESSAGE, 2, 2), (Kind.MESSAGE, 1, 3)):
        assert unsealable(seal, kind, context, sequence, sealed)
    for value in (b"", sealed[:-1], sealed[:12], sealed + b"x", b"x" + sealed):
        assert unsealable(seal, Kind.MESSAGE, 1, 2, value)
    assert unsealable(Seal(new_key()), Kind.MESSAGE, 1, 2, sealed)
    assert unsealable(seal, Kind.KEY, 1, 0, NO_KEY)
    assert len(seal.seal(Kind.KEY, 1, 0, new_key())) == len(NO_KEY)


def unsealable(seal: Seal, kind: Kind, context: int, sequence: int, sealed: bytes) -> bool:
    try:
        seal.open(kind, context, sequence, sealed)
    except Unsealable:
        return True
    return False


def test_a_context_is_written_whatever_its_client_named_itself() -> None:
    """What cannot be written would make others' messages fail, which are in the same commit."""
    context = StoredContext(
        isolation_key="k",
        tenant_id="t",
        user_id="u",
        session_id="s",
        connection_id="c",
        request_id="r",
        created_at=1.5,
        permissions=("chat", "\ud800"),
        metadata={"user_agent": "\udcff\0é\U0001f600", "": "\x7f"},
        issuer="i",
        resume_digest=bytes(range(32)),
        ends_with_socket=False,
    )
    assert decode_context(encode_context(context)) == context
