"""The soak as a program: a few seconds of it, and what it tells and answers when something was broken."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter

import pytest

from tests.faults.history import DISK, Attach, Attempt, History, Receipt
from tests.faults.soak.__main__ import tell
from tests.faults.soak.report import COLUMNS, MAX_LINES, Outcome, outcome


def a_history() -> History:
    """Four accepted: acknowledged, missing, come only, and lost with its context; and one that was refused."""
    history = History()
    alice = accepted(history, "c-1", 3)
    history.came(alice, {"type": "gap", "from": 2, "to": 2, "reason": "expired"})
    history.acknowledgement_read(alice.context, 2)
    refused = history.asked_for(Attempt("refused", alice.context, "s", 9))
    history.answered(history.begins(refused), refused="OUTBOX_FULL")
    accepted(history, "c-2", 1)
    history.ended("c-2", "killed")
    return history


def accepted(history: History, connection_id: str, most: int) -> Attach:
    """A context that accepted so many."""
    welcome = {"connection_id": connection_id, "isolation_key": "k", "attach_id": "a", "recovery": "new", "sequence": 0}
    attach = history.welcomed(("acme", "alice"), welcome, asked=history.now(), durability=DISK)
    for sequence in range(1, most + 1):
        attempt = history.asked_for(Attempt(f"{connection_id} {sequence}", attach.context, "s", sequence))
        history.answered(history.begins(attempt), Receipt(f"m-{sequence}", sequence, DISK))
    return attach


def test_the_table_counts_every_accepted_message_once(capsys: pytest.CaptureFixture[str]) -> None:
    talked = Counter({"said": 6, "handled": 5, "again": 4, "answered": 3, "cancelled": 2})
    found = outcome("sqlite", 8, a_history(), [], Counter({"reset": 2, "cut": 1}), talked)
    assert tell([found, found]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "sqlite: cut 1, reset 2",
        "sqlite: cut 1, reset 2",
        " store  users  sent  acknowledged  gaps  ended  unread  said  handled  again  answered  cancelled  violations",
        "-" * 109,
        "sqlite      8     4             1     1      1       1     6        5      4         3          2           0",
        "sqlite      8     4             1     1      1       1     6        5      4         3          2           0",
        "   all     16     8             2     2      2       2    12       10      8         6          4           0",
    ]


def test_a_breach_is_told_and_ends_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    broken = Outcome("memory", 8, violations=["invariant 8: it is lost"] * (MAX_LINES + 2))
    assert tell([broken, Outcome("sqlite", 8)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines.count("memory: invariant 8: it is lost") == MAX_LINES
    assert lines[-1] == "memory: and 2 more"


@pytest.mark.timeout(90)
async def test_a_short_soak_finds_nothing_and_leaves_nothing() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "tests.faults.soak", "0.1", "--seed", "5"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"GRPC_VERBOSITY": "NONE"},
        start_new_session=True,
    )
    output, errors = await process.communicate()
    assert (process.returncode, errors) == (0, b""), output.decode()
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    lines = output.decode().splitlines()
    assert lines[0] == "seed 5, 0.1 minutes"
    total = dict(zip(COLUMNS, lines[-1].split(), strict=True))
    assert (total.pop("store"), total["users"], total["violations"]) == ("all", "28", "0")
    found = {name: int(number) for name, number in total.items()}
    assert found["sent"] >= found["acknowledged"] > 100
    assert found["said"] >= found["answered"] > 0
    assert found["handled"] > 0
    assert sum(line.count("kill -9 of an agent") for line in lines) == 2
