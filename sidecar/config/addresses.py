"""Where a listener listens: a TCP address or the path of a Unix socket, read from text. Resolves nothing."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

MAX_UNIX_PATH_BYTES: Final = 107

_HOST: Final = r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\])"
_TCP: Final = re.compile(rf"({_HOST}):([0-9]{{1,5}})")


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A host (without the brackets of IPv6) and a port; port 0 is any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def is_wildcard(self) -> bool:
        """Whether it is every interface of the machine."""
        return self.host in {"0.0.0.0", "::"}  # noqa: S104 - compared, not bound

    def clashes_with(self, other: TcpAddress) -> bool:
        """Whether both cannot be listened on at once."""
        if self.port != other.port or not self.port:
            return False
        return self._bound_host == other._bound_host or self.is_wildcard or other.is_wildcard

    @property
    def _bound_host(self) -> str:
        return "127.0.0.1" if self.host == "localhost" else self.host


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """The absolute path of a Unix socket."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


def parse_address(text: str) -> TcpAddress | UnixAddress:
    """Read `host:port`, `[IPv6]:port` or `unix:/path`. Raises ValueError."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path.startswith("/") or "\0" in path or len(path.encode()) > MAX_UNIX_PATH_BYTES:
            raise ValueError("not a socket path")
        return UnixAddress(path)
    found = _TCP.fullmatch(text)
    if found is None or int(found[2]) > 65535:
        raise ValueError("not a TCP address")
    host = found[1].strip("[]")
    if found[1] != host or host.replace(".", "").isdigit():
        ipaddress.ip_address(host)
    return TcpAddress(host, int(found[2]))
