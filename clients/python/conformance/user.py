"""A user's commands."""

from __future__ import annotations

from collections.abc import Callable

from conformance import values
from conformance.values import Values
from sidecar_client import ConnectionEnded, ResumeState, UserConnection, connect


class UserCommands:
    """One runner's connections, by their names."""

    def __init__(self) -> None:
        self._users: dict[str, UserConnection] = {}

    async def connect(self, said: Values) -> Values:
        resume = said.get("resume")
        user = connect(
            said["url"],
            token=_each_in_turn(said["tokens"]),
            resume=None if resume is None else ResumeState(**resume),
            acknowledge=said.get("acknowledge", False),
            proxy=None,
        )
        self._users[said["user"]] = user
        await user.__aenter__()
        return await self.facts(said)

    async def facts(self, said: Values) -> Values:
        user = self._users[said["user"]]
        names = ("connection_id", "isolation_key", "context_token", "recovery")
        return {name: getattr(user, name) for name in names}

    async def next(self, said: Values) -> Values:
        try:
            return values.user_event(await anext(self._users[said["user"]]))
        except ConnectionEnded as ended:
            return values.user_event(ended)

    async def acknowledge(self, said: Values) -> Values:
        self._users[said["user"]].acknowledge()
        return {}

    async def send(self, said: Values) -> Values:
        more = {name: said[name] for name in ("event", "id") if name in said}
        await self._users[said["user"]].send(said["data"], **more)
        return {}

    async def cancel(self, said: Values) -> Values:
        self._users[said["user"]].cancel(stream_id=said.get("stream_id", ""), id=said.get("id", ""))
        return {}

    async def detach(self, said: Values) -> Values:
        state = await self._users.pop(said["user"]).detach()
        assert state is not None
        return {"token": state.token, "last_sequence": state.last_sequence, "attempt": state.attempt}

    async def leave(self, said: Values) -> Values:
        await self._users.pop(said["user"]).close()
        return {}


def _each_in_turn(tokens: list[str]) -> Callable[[], str]:
    """The next at each asking; the last one again and again."""
    left = list(reversed(tokens))
    return lambda: left.pop() if len(left) > 1 else left[0]
