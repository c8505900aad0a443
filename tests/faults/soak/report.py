"""What a soak has found, for people: the table, and each breach in a line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.faults.history import History

COLUMNS = (
    *("store", "users", "sent", "acknowledged", "gaps", "ended", "unread"),
    *("said", "handled", "again", "answered", "cancelled", "violations"),
)
"""`said` to agents and accepted; handed over again, marked; `answered` in a stream that ended or failed visibly."""
MAX_LINES = 50


@dataclass
class Outcome:
    """One company's. Every accepted message counts once: acknowledged, announced as a gap, ended with its context, or
    come and never acknowledged.
    """

    store: str
    users: int
    sent: int = 0
    acknowledged: int = 0
    gaps: int = 0
    ended: int = 0
    unread: int = 0
    talked: Counter[str] = field(default_factory=Counter)
    """What there is of the other direction, by column."""
    violations: list[str] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)

    def row(self) -> tuple[object, ...]:
        numbers = (self.sent, self.acknowledged, self.gaps, self.ended, self.unread)
        talked = (self.talked[name] for name in ("said", "handled", "again", "answered", "cancelled"))
        return self.store, self.users, *numbers, *talked, len(self.violations)


def outcome(
    store: str,
    users: int,
    history: History,
    violations: Iterable[str],
    seen: Counter[str],
    talked: Counter[str] | None = None,
) -> Outcome:
    """What became of everything that was accepted."""
    found = Outcome(store, users, violations=list(violations), seen=seen, talked=talked or Counter())
    read: Counter[str] = Counter()
    for one in history.acknowledged:
        read[one.context.connection_id] = max(read[one.context.connection_id], one.sequence)
    gaps = {
        (attach.context.connection_id, sequence)
        for attach in history.attaches
        for gap in attach.gaps
        for sequence in range(gap.first, gap.last + 1)
    }
    accepted = {(at.context.connection_id, receipt.sequence): at.context for at, _, receipt in history.accepted()}
    found.sent = len(accepted)
    for (connection_id, sequence), context in accepted.items():
        if (connection_id, sequence) in gaps:
            found.gaps += 1
        elif sequence <= read[connection_id]:
            found.acknowledged += 1
        elif context.ended:
            found.ended += 1
        else:
            found.unread += 1
    return found


def table(outcomes: list[Outcome]) -> str:
    """A row a company, and one for all."""
    rows = [tuple(map(str, each.row())) for each in outcomes]
    total = ["all", *(str(sum(int(row[place]) for row in rows)) for place in range(1, len(COLUMNS)))]
    lines = [COLUMNS, *rows, tuple(total)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(COLUMNS))]
    shown = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    return "\n".join([shown[0], "-" * len(shown[0]), *shown[1:]])


def breaches(outcomes: list[Outcome]) -> str:
    """The first lines of each."""
    lines = []
    for each in outcomes:
        lines += [f"{each.store}: {line}" for line in each.violations[:MAX_LINES]]
        if len(each.violations) > MAX_LINES:
            lines.append(f"{each.store}: and {len(each.violations) - MAX_LINES} more")
    return "\n".join(lines)


def weather(outcomes: list[Outcome]) -> str:
    """What befell each, in a line."""
    return "\n".join(
        f"{each.store}: " + ", ".join(f"{name} {count}" for name, count in sorted(each.seen.items()))
        for each in outcomes
    )
