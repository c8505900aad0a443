"""Bad tokens as values: what each is called, how it is made from a good one, and its fault in the audit trail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.security.forge import Hand, segment
from tests.security.token_watch import EVERY_DOOR

DAY_S = 24 * 3600


@dataclass(frozen=True)
class Case:
    """A bad token, what the audit trail calls its fault, and where it can be shown."""

    name: str
    fault: str
    make: Callable[[Hand], str]
    through: tuple[str, ...] = EVERY_DOOR
    reason: str = "TOKEN_INVALID"


def claims(name: str, fault: str, through: tuple[str, ...] = EVERY_DOOR, /, **changes: object) -> Case:
    """A token whose claims differ."""
    return Case(name, fault, lambda hand: hand.token(hand.claims(**changes)), through)


def literal(name: str, fault: str, through: tuple[str, ...] = EVERY_DOOR, /, **members: str) -> Case:
    """A token whose claims hold these very characters."""
    return Case(name, fault, lambda hand: hand.token(hand.literal(**members)), through)


def payload(name: str, text: str | bytes) -> Case:
    """A token whose claims are this text."""
    return Case(name, "malformed", lambda hand: hand.token(text))


def header(name: str, fault: str, /, **changes: object) -> Case:
    """A token whose header differs, signed by the issuer all the same."""
    return Case(name, fault, lambda hand: hand.token(header=hand.head(**changes)))


def text(
    name: str, change: Callable[[str], str], through: tuple[str, ...] = EVERY_DOOR, fault: str = "malformed"
) -> Case:
    """A good token whose characters were changed."""
    return Case(name, fault, lambda hand: change(hand.token()), through)


def dates(name: str, fault: str, reason: str = "TOKEN_INVALID", /, **offsets: int) -> Case:
    """A token whose dates are so many seconds from now."""

    def make(hand: Hand) -> str:
        now = hand.claims()["iat"]
        assert isinstance(now, int)
        return hand.token(hand.claims(**{name: now + offset for name, offset in offsets.items()}))

    return Case(name, fault, make, EVERY_DOOR, reason)


def part(token: str, index: int) -> str:
    """One of a token's segments."""
    return token.split(".")[index]


def with_signature(token: str, signature: bytes) -> str:
    """The token with another signature."""
    return f"{token.rpartition('.')[0]}.{segment(signature)}"


def padded(hand: Hand, length: int) -> str:
    """A good token of exactly so many characters, by a claim and a header member that have no meaning here."""
    for room in range(4):
        head = hand.head(z="z" * room)
        missing = length - len(hand.token(hand.claims(z=""), head))
        for more in range(missing * 3 // 4 - 4, missing * 3 // 4 + 4):
            token = hand.token(hand.claims(z="z" * more), head)
            if len(token) == length:
                return token
    raise AssertionError("no such length")
