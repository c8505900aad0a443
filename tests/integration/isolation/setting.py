"""The sidecar that the isolation tests run: two issuers, three services, and limits that are soon reached."""

from __future__ import annotations

import json
from pathlib import Path

from tests.integration.isolation.model import CRITICAL_RESERVE
from tests.support.running import AUDIENCE, ISSUER

OTHER_ISSUER = "https://other.test"
TENANTS = 500
COLOURS = ("red", "green", "blue")
"""Three tenants an example; the last is of the other issuer."""
OPERATOR = "operator-of-the-isolation-tests"
DEPUTY = "deputy-of-the-isolation-tests"
"""Of a service that may neither exchange nor administer."""
LOCAL = "local-of-the-isolation-tests"
"""Of a service that may do everything, for the green tenants only."""
MAX_MESSAGES = 60


def tenant_of(colour: str, number: int) -> str:
    """The tenant of that colour in the example of that number."""
    return f"{colour}-{number % TENANTS}"


def environment(folder: Path) -> dict[str, str]:
    """Two issuers with their tenants, three services, and limits that are soon reached."""
    issuers = [
        {
            "issuer": issuer,
            "audience": AUDIENCE,
            "key_file": f"{folder}/user.key",
            "tenants": [tenant_of(colour, number) for colour in colours for number in range(TENANTS)],
        }
        for issuer, colours in ((ISSUER, COLOURS[:2]), (OTHER_ISSUER, COLOURS[2:]))
    ]
    everything = ["deliver", "exchange", "attach", "admin"]
    scopes = ["send", "emit", "stats", "close", "broadcast:user", "broadcast:tenant"]
    greens = [tenant_of("green", number) for number in range(TENANTS)]
    services = [
        {"name": "operator", "token": OPERATOR, "allow": everything, "scopes": scopes},
        {"name": "deputy", "token": DEPUTY, "allow": ["deliver"]},
        {"name": "local", "token": LOCAL, "allow": everything, "tenants": greens, "scopes": scopes},
    ]
    tokens = folder / "services"
    tokens.write_text("\n".join(json.dumps(service) for service in services))
    tokens.chmod(0o600)
    return {
        "SIDECAR_USER_TOKENS": json.dumps(issuers),
        "SIDECAR_SERVICE_AUTH__TOKEN_FILE": str(tokens),
        "SIDECAR_WEBSOCKET__CONNECTS_PER_SECOND_PER_ADDRESS": "0",
        "SIDECAR_LIMITS__MAX_MESSAGE_BYTES": "65536",
        "SIDECAR_OUTBOX__MAX_MESSAGES": str(MAX_MESSAGES),
        "SIDECAR_OUTBOX__MAX_BYTES": "524288",
        "SIDECAR_OUTBOX__CRITICAL_RESERVE": str(CRITICAL_RESERVE),
        "SIDECAR_OUTBOX__RESUME_WINDOW_S": "1",
    }
