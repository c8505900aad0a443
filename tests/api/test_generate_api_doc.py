"""scripts/generate_api_doc.py: what it makes of a contract, and that docs/api.md holds all of the stubs' one."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from scripts import generate_api_doc
from sidecar.api.v1 import (
    admin_service_pb2,
    agent_service_pb2,
    context_service_pb2,
    delivery_service_pb2,
    error_reason_pb2,
    types_pb2,
)

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
FILES = [
    module.DESCRIPTOR
    for module in (
        delivery_service_pb2,
        context_service_pb2,
        agent_service_pb2,
        admin_service_pb2,
        types_pb2,
        error_reason_pb2,
    )
]


def messages() -> Iterator[Descriptor]:
    waiting = [message for file in FILES for message in file.message_types_by_name.values()]
    while waiting:
        message = waiting.pop()
        if not message.GetOptions().map_entry:
            yield message
            waiting += message.nested_types


def section(heading: str) -> str:
    """What stands below a heading, up to the next."""
    found = re.findall(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert len(found) == 1, heading
    return str(found[0])


def rows(heading: str) -> list[tuple[int, str]]:
    """The numbers and names of the table below a heading."""
    return [
        (int(number), name) for number, name in re.findall(r"^\| (\d+) \| `(\w+)` \|", section(heading), re.MULTILINE)
    ]


def short(element: Descriptor | EnumDescriptor) -> str:
    return str(element.full_name).removeprefix("sidecar.api.v1.")


@pytest.mark.parametrize("message", list(messages()), ids=short)
def test_every_message_is_on_the_page_with_its_fields(message: Descriptor) -> None:
    assert rows(short(message)) == [(field.number, field.name) for field in message.fields]
    text = section(short(message))
    for field in message.fields:
        assert kind_of(field) in text


def kind_of(field: FieldDescriptor) -> str:
    """A link where the type is one of this package's, so far as it is on this page."""
    target = field.message_type or field.enum_type
    is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
    if target is None or is_map or not target.full_name.startswith("sidecar."):
        return f"`{field.name}`"
    name = short(target)
    return f"[`{name}`](#{name.lower().replace('.', '')})"


@pytest.mark.parametrize("enum", [each for file in FILES for each in file.enum_types_by_name.values()], ids=short)
def test_every_enum_is_on_the_page_with_its_values(enum: EnumDescriptor) -> None:
    assert rows(short(enum)) == [(value.number, value.name) for value in enum.values]


def test_every_method_is_on_the_page() -> None:
    for service in (service for file in FILES for service in file.services_by_name.values()):
        assert section(service.name).strip()
        for method in service.methods:
            text = section(method.name)
            assert f"`{service.full_name}/{method.name}`: " in text
            assert ("a stream of [`" + method.input_type.name in text) is method.client_streaming
            assert ("a stream of [`" + method.output_type.name in text) is method.server_streaming


def test_nothing_is_left_of_the_template_and_nothing_without_a_word() -> None:
    assert generate_api_doc.CONTENTS not in PAGE
    assert not re.search(r"\|  +\|$", PAGE, flags=re.MULTILINE)


def test_comments_become_paragraphs_and_cells() -> None:
    assert generate_api_doc._paragraphs(" One\n line.\n\n Two.\n") == "One line.\n\nTwo."
    assert generate_api_doc._cell("a | b\n\nc") == "a \\| b c"


def test_a_comment_is_found_by_its_place() -> None:
    file = FileDescriptorProto(name="sidecar/api/v1/types.proto", package="sidecar.api.v1")
    file.message_type.add(name="Message").field.add(name="payload", number=1)
    location = file.source_code_info.location.add(path=[4, 0, 2, 0])
    location.leading_comments = " The content.\n"
    source = generate_api_doc.Source.of(file)
    assert source.comment(4, 0, 2, 0) == "The content."
    assert source.comment(4, 0) == ""


def test_check_says_what_to_run_where_the_page_is_stale(tmp_path: Path) -> None:
    """In a process of its own, on a copy of the page, as `make check` runs it; without what protoc would give."""
    program = (
        "import sys; from pathlib import Path; from scripts import generate_api_doc as script;"
        "script.TARGET = Path(sys.argv.pop(1)); script.load = list; script.page = lambda files, preface: 'new\\n';"
        "sys.exit(script.main())"
    )
    page = tmp_path / "api.md"
    for text, code in (("old\n", 1), ("new\n", 0)):
        page.write_text(text)
        done = subprocess.run(
            [sys.executable, "-c", program, str(page), "--check"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == code
        assert (done.stderr == "") is (code == 0)
        assert page.read_text() == text
