"""Services and operators end contexts, and others try to."""

from __future__ import annotations

from dataclasses import dataclass

from sidecar.api.v1 import admin_service_pb2 as admin_pb
from sidecar.api.v1 import delivery_service_pb2 as pb
from tests.integration.isolation.aims import Aim, Operation, as_service, judge, service_refused
from tests.integration.isolation.calls import answer_to, as_client
from tests.integration.isolation.model import (
    MANAGERS_PER_USER,
    SOCKETS_PER_MANAGER,
    Isolation,
)
from tests.integration.isolation.world import World


@dataclass(frozen=True)
class Close(Operation):
    """A service ends a context."""

    aim: Aim
    code: int = 0

    async def run(self, world: World) -> None:
        credential = self.aim.at(world)
        if credential is None:
            return
        credential.expected_user_id = ""
        context = credential.may_open
        if context is not None and "close" in credential.token.scopes:
            context.may_close("closed_by_service", self.code or 4505)
        request = pb.CloseManagerRequest(isolation_key=credential.key, code=self.code)
        call = world.service.delivery.CloseManager(request, metadata=as_client(credential.token))
        answer = await answer_to(call)
        if judge(world, answer, credential, "close", "CloseManager") and context is not None:
            context.ended = True
            assert answer.value.connections <= SOCKETS_PER_MANAGER


@dataclass(frozen=True)
class CleanUp(Operation):
    """An operator ends a context, or somebody who is none tries to."""

    context: int
    service: str = "operator"

    async def run(self, world: World) -> None:
        context = world.context(self.context)
        if context is None:
            return
        allowed = self.service == "operator" or (self.service == "local" and context.person.tenant.startswith("green"))
        was_ended = context.ended
        if allowed:
            context.may_close("cleaned_up", 4505)
        request = admin_pb.CleanupManagerRequest(isolation_key=context.key)
        answer = await answer_to(world.service.admin.CleanupManager(request, metadata=as_service(self.service)))
        if service_refused(world, self.service, answer, "CleanupManager"):
            return
        world.trail.expect("admin_call", "CleanupManager")
        if answer.reason:
            assert answer.reason == "MANAGER_GONE"
            assert not allowed or context.may_end
        elif not allowed or was_ended:
            raise Isolation(f"{self.service} ended {context}")
        else:
            context.ended = True


@dataclass(frozen=True)
class Disconnect(Operation):
    """An operator ends all contexts of a user."""

    who: int
    service: str = "operator"

    async def run(self, world: World) -> None:
        person = world.person(self.who)
        foreign = self.service == "local" and not person.tenant.startswith("green")
        before = world.of_person(person)
        if self.service in {"operator", "local"} and not foreign:
            person.disconnecting = True
            for context in before:
                context.may_close("disconnected", 4505)
        request = admin_pb.DisconnectUserRequest(tenant_id=person.tenant, user_id=person.subject)
        answer = await answer_to(world.service.admin.DisconnectUser(request, metadata=as_service(self.service)))
        if service_refused(world, self.service, answer, "DisconnectUser"):
            return
        if foreign:
            assert answer.reason == "SERVICE_DENIED"
            world.trail.expect("service_denied", "DisconnectUser", None, None)
            return
        assert not answer.reason
        world.trail.expect("admin_call", "DisconnectUser")
        assert answer.value.managers <= MANAGERS_PER_USER
        for context in before:
            context.ended = True
