"""docs/security.md: the events, the record and the token line that it shows are those of the code."""

from __future__ import annotations

import json
from typing import Any, Final

from sidecar.core.ports import AuditEvent
from sidecar.security.service_auth import Permission, parse_token_file
from tests.docs.pages import ROOT, blocks, inline_code, table
from tests.support.running import RunningSidecar, refusal

PAGE: Final = ROOT / "docs" / "security.md"


def shown() -> tuple[dict[str, Any], dict[str, Any]]:
    """The line of the token file and the record of the audit trail."""
    line, record = (json.loads(block.text) for block in blocks("json", pages=(PAGE,)))
    return line, record


def test_every_event_is_in_the_table_once_and_no_other() -> None:
    rows = [event for event, *_ in table(PAGE, "event", "when", "written")]
    assert rows == [event.value for event in AuditEvent]


def test_the_service_token_is_one_that_is_read() -> None:
    line, _ = shown()
    (credential,) = parse_token_file(json.dumps(line).encode(), "service_auth.token_file")
    assert credential.identity.name == line["name"]
    assert {permission.value for permission in Permission} <= set(inline_code(PAGE))


async def test_the_record_is_one_that_is_written(sidecar: RunningSidecar) -> None:
    _, record = shown()
    async with sidecar.user("alice") as alice, sidecar.user("mallory") as mallory, sidecar.service() as service:
        await refusal(service.send(alice.isolation_key, mallory.context_token))
    written = next(each for each in await sidecar.audit_records(record["event"]) if each["user_id"] == "mallory")
    assert [(name, type(value)) for name, value in record.items()] == [(n, type(v)) for n, v in written.items()]
    assert {name: record[name] for name in ("reason", "method")} == {
        name: written[name] for name in ("reason", "method")
    }


def test_what_the_libraries_lack_has_its_place() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text.count("<!-- facts -->") == text.count("<!-- /facts -->") == 1
    assert text.index("<!-- facts -->") < text.index("<!-- /facts -->")
