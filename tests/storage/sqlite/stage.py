"""A core over a real store in a file, on a loop whose time can leap; a disk that counts, holds and fails what it does.

The files are read by the test's own process while the store has them: that gives up the store's lock on them (POSIX
record locks are the process's), which matters to no test that does it.
"""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial, wraps
from pathlib import Path
from typing import Any, TypeVar

from sidecar.core.errors import SidecarError
from sidecar.core.limits import Limits
from sidecar.core.manager import IsolatedWebSocketManager
from sidecar.core.message import Instant, PendingReceipt, Receipt
from sidecar.core.outbox import OutboxLimits
from sidecar.core.stored import RestoredContext, StoredState
from sidecar.core.writes import WriteBatch
from sidecar.storage.sqlite.database import Loaded, load, open_database
from sidecar.storage.sqlite.sealing import Seal
from sidecar.storage.sqlite.store import FLUSH_S, SqliteOutboxStore
from tests.support.core import Core

KEY = bytes(range(32))
SEAL = Seal(KEY)
MANY = Limits(outbox=OutboxLimits(max_messages=20_000, max_bytes=64 * 1024 * 1024), queued_bytes_per_user=2**30)
CHECKPOINT = "PRAGMA wal_checkpoint(TRUNCATE)"
TIMEOUT_S = 20.0
Outcome = TypeVar("Outcome")


class LeapingLoop(asyncio.SelectorEventLoop):
    """A loop on real time, but for the seconds that a test leaps ahead. It counts what a store's thread told it."""

    leapt_s = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.answers = 0
        self.answered = asyncio.Event()
        self.after_answer: Callable[[], None] | None = None
        """Called once, in the step in which the next is given."""

    def time(self) -> float:
        return super().time() + self.leapt_s

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Any, *arguments: Any, context: Any = None
    ) -> asyncio.Handle:
        if threading.current_thread().name == "outbox-store":
            return super().call_soon_threadsafe(self._answer, callback, *arguments)
        return super().call_soon_threadsafe(callback, *arguments, context=context)

    def _answer(self, callback: Callable[..., None], *arguments: Any) -> None:
        callback(*arguments)
        if self.after_answer is not None:
            then, self.after_answer = self.after_answer, None
            then()
        self.answers += 1
        self.answered.set()


def run(test: Callable[[], Coroutine[Any, Any, Outcome]]) -> Outcome:
    """Run a test on such a loop."""
    with asyncio.Runner(loop_factory=LeapingLoop) as runner:
        return runner.run(test())


def leaping(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that runs on such a loop."""

    @wraps(test)
    def on_the_loop(**fixtures: Any) -> None:
        run(lambda: test(**fixtures))

    return on_the_loop


def leaping_loop() -> LeapingLoop:
    """The loop of this test."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, LeapingLoop)
    return loop


def leap(seconds: float) -> None:
    """That much time has passed on the loop."""
    leaping_loop().leapt_s += seconds


@asynccontextmanager
async def one_batch() -> AsyncIterator[None]:
    """What the block does has the store write a batch; leaves once that was answered, well or not."""
    loop = leaping_loop()
    wanted = loop.answers + 1
    yield
    async with asyncio.timeout(TIMEOUT_S):
        while loop.answers < wanted:
            loop.answered.clear()
            await loop.answered.wait()


def error(code: int) -> sqlite3.OperationalError:
    """An error as SQLite gives it."""
    made = sqlite3.OperationalError("text that nobody is to see")
    made.sqlite_errorcode = code
    return made


class LedConnection(sqlite3.Connection):
    """A connection whose disk says what becomes of a statement."""

    disk: Disk

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        self.disk.before(sql)
        cursor = super().execute(sql, parameters)
        self.disk.after(sql)
        return cursor


class Disk:
    """What stands between a store and its file. `statements` are those that came through."""

    def __init__(self) -> None:
        self.statements: list[str] = []
        self.connection: LedConnection
        self._failures: deque[tuple[str, sqlite3.Error]] = deque()
        self._passing = 0
        self._open = threading.Event()
        self._open.set()
        loop = leaping_loop()
        self._tell = partial(asyncio.SelectorEventLoop.call_soon_threadsafe, loop)
        self._held = asyncio.Event()

    def opening(self, path: Path, seal: Seal) -> sqlite3.Connection:
        """Opens a file on this disk, for a store."""
        return open_database(path, seal, factory=self._connect)

    def _connect(self, *arguments: Any, **members: Any) -> LedConnection:
        self.connection = LedConnection(*arguments, **members)
        self.connection.disk = self
        return self.connection

    def before(self, sql: str) -> None:
        if sql == "BEGIN IMMEDIATE" and not self._open.is_set():
            self._tell(self._held.set)
            assert self._open.wait(TIMEOUT_S)
        if self._failures and sql.startswith(self._failures[0][0]):
            self._passing -= 1
            if self._passing < 0:
                self._passing = 0
                raise self._failures.popleft()[1]

    def after(self, sql: str) -> None:
        self.statements.append(sql)

    def fail(self, statement: str, code: int = sqlite3.SQLITE_IOERR, *, passing: int = 0) -> None:
        """The next statement that begins like that fails, or the one after so many; after those told to before."""
        self._passing += passing
        self._failures.append((statement, error(code)))

    def hold(self) -> None:
        """Begin nothing before `let_go`."""
        self._held.clear()
        self._open.clear()

    async def held(self) -> None:
        """Once a batch is held."""
        async with asyncio.timeout(TIMEOUT_S):
            await self._held.wait()

    def let_go(self) -> None:
        self._open.set()

    def fill(self) -> None:
        """No page more than there are: SQLITE_FULL for what needs one."""
        self.connection.execute("PRAGMA max_page_count = 1").fetchall()

    def make_room(self) -> None:
        self.connection.execute("PRAGMA max_page_count = 1000000").fetchall()

    def count(self, statement: str) -> int:
        """How many that begin like that came through."""
        return sum(sql.startswith(statement) for sql in self.statements)


class Stage:
    """One life of a core with its store. `managers` are those that were there again."""

    def __init__(self, path: Path, *, limits: Limits | None = None, at: Instant | None = None, life: int = 0) -> None:
        self.path = path
        self.disk = Disk()
        self.store = SqliteOutboxStore(path, KEY, WriteBatch(), self.disk.opening)
        self.disk.statements.clear()
        self.life = life
        self.core = Core(limits, store=self.store)
        self.core.randomness.calls += [0] * (500 * life)  # no life repeats what another drew
        if at is not None:
            self.core.clock.step_wall(at.unix - self.core.clock.time())
        self.managers: list[IsolatedWebSocketManager] = []
        self.store.start()
        self.store.restore(self._adopt)

    def _adopt(self, kept: RestoredContext) -> tuple[int, Callable[[], StoredState]] | None:
        if kept.context.ends_with_socket:
            return None
        context = self.core.contexts.restore_context(kept.context)
        manager = self.core.factory.restore_manager(context, self.core.encoder, kept, self.core.clock.now())
        self.managers.append(manager)
        return manager.epoch, manager.stored_state

    async def create(self, **members: Any) -> IsolatedWebSocketManager:
        """A manager that the store keeps."""
        manager = self.core.create(**members)
        await created(manager)
        return manager

    async def connect(self, **members: Any) -> tuple[IsolatedWebSocketManager, Any]:
        """The same, with its primary socket."""
        manager = await self.create(**members)
        return manager, self.core.attach(manager)

    async def send(
        self, manager: IsolatedWebSocketManager, payload: bytes = b"{}", message_id: str = "", **members: Any
    ) -> Receipt:
        """Send one message; the receipt. Raises a SidecarError."""
        outcome = self.core.offer(manager, payload, message_id, **members)
        return outcome if isinstance(outcome, Receipt) else await receipt(outcome)

    def end(self, manager: IsolatedWebSocketManager) -> None:
        """The context ends."""
        manager.end("closed_by_service", None, self.core.clock.now())

    async def flushed(self) -> None:
        """Once what is upkeep now is committed."""
        async with one_batch():
            leap(FLUSH_S)

    async def restarted(self) -> Stage:
        """The next life, after an end in order; the time on the wall is the same."""
        await self.store.close()
        return Stage(self.path, limits=self.core.factory.limits, at=self.core.clock.now(), life=self.life + 1)

    def after_crash(self, folder: Path) -> Stage:
        """The next life, had it been killed now. This one can go on: the next has copies of its files."""
        return Stage(self.copy(folder), limits=self.core.factory.limits, at=self.core.clock.now(), life=self.life + 1)

    async def written(self) -> None:
        """Once nothing that was asked of the store is left, well or not."""
        done = asyncio.Event()
        while not self.store.when_written(done.set):
            async with asyncio.timeout(TIMEOUT_S):
                await done.wait()
            done.clear()

    def resume(self, manager: IsolatedWebSocketManager, last_sequence: int) -> tuple[bool, list[bytes]]:
        """A client comes back that has everything up to there: whether it is `full`, and what it is given."""
        socket, at = self.core.socket(), self.core.clock.now()
        full = manager.resume(manager.context, socket, last_sequence, at)
        manager.resume_writing(at)
        return full, socket.frames

    def copy(self, folder: Path) -> Path:
        """The files as a crash would leave them now."""
        return copied(self.path, folder)


def copied(path: Path, folder: Path) -> Path:
    """Copies of the database and its log; the copy's path."""
    folder.mkdir(exist_ok=True)
    for suffix in ("", "-wal", "-journal"):
        source = Path(f"{path}{suffix}")
        if source.exists():
            shutil.copy(source, folder / source.name)
    return folder / path.name


def read(path: Path, key: bytes = KEY) -> Loaded:
    """All that a store would find in that file."""
    seal = Seal(key)
    connection = open_database(path, seal)
    try:
        return load(connection, seal)
    finally:
        connection.close()


async def created(manager: IsolatedWebSocketManager) -> None:
    """Once the store has answered that it keeps it. Raises a SidecarError."""
    assert manager.creation is not None
    done = asyncio.Event()
    manager.creation.add_done_callback(done.set)
    async with asyncio.timeout(TIMEOUT_S):
        await done.wait()
    if manager.creation.error is not None:
        raise manager.creation.error


async def receipt(pending: PendingReceipt | Receipt) -> Receipt:
    """What it settles to. Raises a SidecarError."""
    assert isinstance(pending, PendingReceipt)
    done = asyncio.Event()
    pending.add_done_callback(lambda _: done.set())
    async with asyncio.timeout(TIMEOUT_S):
        await done.wait()
    if pending.error is not None:
        raise pending.error
    assert pending.receipt is not None
    return pending.receipt


async def refusal(pending: PendingReceipt | Receipt) -> SidecarError:
    """The error that it must settle to."""
    try:
        answer = await receipt(pending)
    except SidecarError as refused:
        return refused
    raise AssertionError(f"not refused: {answer}")
