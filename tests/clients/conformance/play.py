"""Plays one scenario: tells the actors what to do, step by step, and judges what comes of it."""

from __future__ import annotations

from concurrent.futures import Future
from concurrent.futures import TimeoutError as NoAnswer
from itertools import count
from typing import Any, Final

from clients.conformance.languages import SERVICE
from clients.conformance.runners import ANSWER_TIMEOUT_S, Answer, Runner
from tests.clients.conformance.matching import fill, mismatch
from tests.clients.conformance.scenarios import Scenario
from tests.clients.conformance.world import World

_plays = count(1)
_TELLING: Final = {"who", "do", "with", "as", "gives", "fails", "begin", "await", "kinds"}
_BY_SENDER: Final = ("sender_",)
_BY_AGENT: Final = ("agent_", "reply_", "context_")


class Failed(AssertionError):
    """A step was not answered as the scenario says."""


class Play:
    """One scenario with one runner a side. Names of users, clients, senders and agents are this play's alone."""

    def __init__(self, scenario: Scenario, world: World, service: Runner, user: Runner) -> None:
        self._scenario = scenario
        self._world = world
        self._service = service
        self._user = user
        self._number = next(_plays)
        self._tenant = f"tenant-{self._number}"
        self._names: dict[str, Any] = {}
        self._begun: dict[str, tuple[dict[str, Any], Future[Answer]]] = {}
        self._users: set[str] = set()
        self._agents: set[str] = set()

    def run(self) -> None:
        """Raises Failed, with the step that failed."""
        self._world.enter(self._tenant)
        try:
            self._open()
            for place, step in enumerate(self._scenario.steps, 1):
                try:
                    self._step(step)
                except (Failed, NoAnswer) as failed:
                    said = str(failed) or f"no answer in {ANSWER_TIMEOUT_S} s"
                    raise Failed(f"{self._scenario}, step {place}, {step}: {said}") from None
        finally:
            try:
                self._leave()
            finally:
                self._world.leave()

    # The beginning and the end

    def _open(self) -> None:
        self._names["tenant"] = self._tenant
        arguments = {"client": self._own("client"), "endpoint": self._world.endpoint, "service_token": self._token()}
        self._judge({}, self._service.tell("open", **arguments))

    def _token(self) -> str:
        return self._world.running.service_token

    def _leave(self) -> None:
        """Close everything that was opened, whatever state it is in."""
        for proxy in ("user", "service"):
            self._world.do_calm(proxy)
        leaving = [self._user.begin("leave", user=self._own(user)) for user in sorted(self._users)]
        leaving += [self._service.begin("agent_close", agent=self._own(agent)) for agent in sorted(self._agents)]
        for answer in leaving:
            _wait(answer)
        _wait(self._service.begin("close", client=self._own("client")))

    def _own(self, name: str) -> str:
        return f"{name}-{self._number}"

    # Steps

    def _step(self, step: dict[str, Any]) -> None:
        unknown = step.keys() - _TELLING
        if unknown:
            raise Failed(f"a step has no {sorted(unknown)}")
        if "await" in step:
            begun, answer = self._begun.pop(step["await"])
            self._judge(begun | step, answer.result(ANSWER_TIMEOUT_S))
            return
        who, do = step["who"], step["do"]
        said = fill(step.get("with", {}), self._names)
        if who == "world":
            self._keep(step, self._world.do(do, said))
            return
        answer = self._begin(who, do, said)
        if "begin" in step:
            self._begun[step["begin"]] = step, answer
            return
        came = answer.result(ANSWER_TIMEOUT_S)
        while do == "agent_next" and not self._is_meant(came, step):
            came = self._begin(who, do, said).result(ANSWER_TIMEOUT_S)
        self._judge(step, came)

    def _begin(self, who: str, do: str, said: dict[str, Any]) -> Future[Answer]:
        if who == SERVICE:
            return self._service.begin(do, **self._for_service(do, said))
        self._users.add(who)
        if do in {"leave", "detach"}:
            self._users.discard(who)
        if do == "connect":
            said = {"url": self._world.url, "tokens": [self._world.user_token(who)]} | said
        return self._user.begin(do, user=self._own(who), **said)

    def _for_service(self, do: str, said: dict[str, Any]) -> dict[str, Any]:
        names = {"client": "client"}
        if do.startswith(_BY_SENDER):
            names["sender"] = "sender"
        if do.startswith(_BY_AGENT):
            names["agent"] = "agent"
        said = dict(said)
        for kind, default in names.items():
            name = said.get(kind, default)
            said[kind] = self._own(name)
            if kind == "agent":
                self._agents.add(name) if do != "agent_close" else self._agents.discard(name)
        if do == "open":
            return {"service_token": self._token()} | said
        return said

    def _is_meant(self, came: Answer, step: dict[str, Any]) -> bool:
        """Events of other plays' contexts are passed over, and of kinds that the step does not ask for."""
        event = came.get("ok")
        if event is None:
            return True
        return event["user"]["tenant_id"] == self._tenant and event["kind"] in step.get("kinds", [event["kind"]])

    # Judging

    def _judge(self, step: dict[str, Any], came: Answer) -> None:
        if "fails" in step:
            wrong = mismatch(
                fill(step["fails"], self._names), came.get("error", {"not": "refused", **came}), "the error"
            )
        elif "error" in came:
            wrong = f"it failed: {came['error']}"
        else:
            wrong = mismatch(fill(step.get("gives", {}), self._names), came["ok"], "the answer")
        if wrong:
            raise Failed(wrong)
        self._keep(step, came.get("ok", came.get("error")))

    def _keep(self, step: dict[str, Any], came: Any) -> None:
        name = step.get("as") or (step["who"] if step.get("do") == "connect" else None)
        if name:
            self._names[name] = came


def _wait(answer: Future[Answer]) -> None:
    try:
        answer.result(10.0)
    except Exception:  # noqa: BLE001 - it is the end, and the play has said what it has to say
        return
