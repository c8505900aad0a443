"""Development mode: made-up keys in a folder that goes away, the demo page, the demo agent as its own process."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import secrets
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import orjson

from sidecar.config import AuditSettings, Config, ConfigError, StartError, UserTokenSettings, development_config
from sidecar.ops.development import DevelopmentSite
from sidecar.security.files import create_private
from sidecar.security.keys import load_hmac_secret
from sidecar.security.user_tokens import mint_user_token

if TYPE_CHECKING:
    from sidecar.ops.edge import OpsEdge

ISSUER: Final = "ws-sidecar-development"
AUDIENCE: Final = "ws-sidecar"
USER_TOKEN_TTL_S: Final = 3600
AGENT_START_TIMEOUT_S: Final = 20.0
AGENT_STOP_TIMEOUT_S: Final = 5.0
AGENT_ATTACHED: Final = "demo agent attached\n"
"""What the demo agent says when it takes messages."""


class Development:
    """What a sidecar with `--dev` has beside the others. Everything it makes up lives in `folder` (mode 0700)."""

    def __init__(self, config: Config, folder: Path, *, demo_agent: bool = True) -> None:
        """Raises ConfigError when the settings would let development mode leave loopback.

        Without `demo_agent` the page waits for an agent that somebody attaches.
        """
        self.service_token = secrets.token_urlsafe(24)
        self._key_file = folder / "user-token.key"
        config = development_config(config)
        if not config.user_tokens:
            create_private(self._key_file, secrets.token_hex(32).encode())
            issuer = UserTokenSettings(issuer=ISSUER, audience=AUDIENCE, key_file=self._key_file)
            config = config.model_copy(update={"user_tokens": (issuer,)})
        if "HS256" not in config.user_tokens[0].algorithms:
            raise ConfigError("user_tokens.algorithms", "development mode mints user tokens: it needs HS256")
        if "audit" not in config.model_fields_set:
            config = config.model_copy(update={"audit": AuditSettings(path=folder / "audit.jsonl")})
        self.config = config
        self._demo_agent = demo_agent
        self._agent: asyncio.subprocess.Process | None = None
        self._addresses: dict[str, str] = {}

    def origins(self, ops_port: int) -> tuple[str, ...]:
        """The origins of the demo page, which may open WebSockets."""
        return tuple(f"http://{host}:{ops_port}" for host in ("127.0.0.1", "localhost", "[::1]"))

    async def start(self, ops: OpsEdge, websocket_port: int, grpc_target: str) -> None:
        """Start the demo agent, then open the page that talks to it. Raises StartError."""
        websocket_url = f"ws://{self.config.websocket.address.host}:{websocket_port}/v1/connect"
        if self._demo_agent:
            await self._start_agent(grpc_target)
        ops.open_development(DevelopmentSite(websocket_url, self.mint_user_token))
        self._addresses = {
            "open": f"http://127.0.0.1:{ops.port}/",
            "websocket": websocket_url,
            "grpc": grpc_target,
            "audit trail": str(self.config.audit.path),
        }

    def announcement(self) -> str:
        """What to open, and what a service needs to call this sidecar."""
        lines = [f"{name} {address}" for name, address in self._addresses.items()]
        if self.config.service_auth.token_file is None:
            lines.append(f"service token {self.service_token}")
        return "\n".join(lines)

    def mint_user_token(self, subject: str) -> str:
        """A user token for the demo page; the first issuer's, which must be an HMAC one."""
        issuer = self.config.user_tokens[0]
        assert issuer.key_file is not None
        return mint_user_token(
            load_hmac_secret(issuer.key_file),
            issuer=issuer.issuer,
            audience=issuer.audience,
            subject=subject,
            tenant_id=issuer.tenants[0] if issuer.tenants else None,
            session_id=None,
            ttl_s=USER_TOKEN_TTL_S,
            now=time.time(),
            key_id=issuer.key_id,
        )

    async def close(self) -> None:
        """Stop the demo agent: it ends when its standard input does. Idempotent, bounded."""
        agent, self._agent = self._agent, None
        if agent is None:
            return
        if agent.stdin is not None:
            agent.stdin.close()
        try:
            async with asyncio.timeout(AGENT_STOP_TIMEOUT_S):
                await agent.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                agent.kill()
            await agent.wait()

    async def _start_agent(self, grpc_target: str) -> None:
        environment = os.environ | {
            "SIDECAR_GRPC_ENDPOINT": grpc_target,
            "SIDECAR_SERVICE_TOKEN": self.agent_token(),
        }
        self._agent = await asyncio.create_subprocess_exec(
            sys.executable,
            str(demo_agent_folder()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment,
        )
        assert self._agent.stdout is not None
        try:
            async with asyncio.timeout(AGENT_START_TIMEOUT_S):
                line = (await self._agent.stdout.readline()).decode()
        except TimeoutError:
            line = ""
        if line != AGENT_ATTACHED:
            raise StartError("the demo agent did not start")

    def agent_token(self) -> str:
        """What the demo agent calls with: the made-up token, else the first that may attach. Raises StartError."""
        path = self.config.service_auth.token_file
        if path is None:
            return self.service_token
        for line in map(str.strip, path.read_text(encoding="utf-8").splitlines()):
            if not line or line.startswith("#"):
                continue
            entry = orjson.loads(line) if line.startswith("{") else {"token": line, "allow": ["attach"]}
            if "attach" in entry["allow"]:
                return str(entry["token"])
        raise StartError("no service may attach: the demo agent has no token in service_auth.token_file")


def demo_agent_folder() -> Path:
    """Where the demo agent is: inside the package when it was installed, beside it in a checkout."""
    spec = importlib.util.find_spec("sidecar._demo_agent")
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent
    return Path(__file__).parent.parent / "examples" / "demo_agent"
