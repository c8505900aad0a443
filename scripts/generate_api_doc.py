"""Writes docs/api.md from proto/ and its comments; with --check only says whether it is current.

The opening is scripts/api_preface.md. protoc comes from .venv-proto, which generate_proto.py builds.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
    ServiceDescriptorProto,
)

from scripts.generate_proto import GOOGLEAPIS, PROTO, PYTHON, ROOT, Failed, prepare_environment, prepare_googleapis, run

TARGET: Final = ROOT / "docs" / "api.md"
PREFACE: Final = ROOT / "scripts" / "api_preface.md"
CONTENTS: Final = "<!-- contents -->\n"
SERVICES: Final = ("delivery", "context", "agent", "admin")
"""The order in which a reader needs them."""
NOT_SERVED: Final = frozenset({"RevokeUser", "TailAuditLog"})
"""In the contract and answered UNSUPPORTED; tests/docs holds this against a running sidecar."""
ELSEWHERE: Final = {
    ".google.protobuf.Duration": "https://protobuf.dev/reference/protobuf/google.protobuf/#duration",
    ".google.protobuf.Timestamp": "https://protobuf.dev/reference/protobuf/google.protobuf/#timestamp",
    ".google.rpc.Status": "https://google.aip.dev/193",
}

Place = tuple[int, ...]
# descriptor.proto's field numbers: what the place of a comment is made of.
_MESSAGE, _ENUM, _SERVICE, _SYNTAX = 4, 5, 6, 12
_FIELD, _NESTED, _ONEOF, _MEMBER = 2, 3, 8, 2


@dataclass(frozen=True, slots=True)
class Source:
    """One file of the contract and the comments in it, by their places."""

    file: FileDescriptorProto
    comments: Mapping[Place, str]

    @classmethod
    def of(cls, file: FileDescriptorProto) -> Source:
        located = {tuple(location.path): location.leading_comments for location in file.source_code_info.location}
        return cls(file, {place: _paragraphs(text) for place, text in located.items() if text})

    def comment(self, *place: int) -> str:
        """The comment of that element; every one has its own, which buf lint holds."""
        return self.comments.get(place, "")


@dataclass(frozen=True, slots=True)
class Type:
    """A message or an enum: its name within the package, and where its comments are."""

    name: str
    source: Source
    place: Place
    descriptor: DescriptorProto | EnumDescriptorProto


def main() -> int:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where the page is not current")
    arguments = parser.parse_args()
    try:
        text = page(load(), PREFACE.read_text(encoding="utf-8"))
    except Failed as error:
        print(error, file=sys.stderr)
        return 1
    if not arguments.check:
        TARGET.write_text(text, encoding="utf-8")
        return 0
    if TARGET.is_file() and TARGET.read_text(encoding="utf-8") == text:
        return 0
    print("docs/api.md is not current: run scripts/generate_api_doc.py", file=sys.stderr)
    return 1


def load() -> list[FileDescriptorProto]:
    """The files of proto/ as protoc reads them, comments included. Raises Failed."""
    prepare_environment()
    prepare_googleapis()
    protos = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "contract"
        options: list[str | Path] = ["--include_source_info", f"--descriptor_set_out={target}"]
        run([PYTHON, "-m", "grpc_tools.protoc", f"-I{PROTO}", f"-I{GOOGLEAPIS}", *options, *protos])
        return list(FileDescriptorSet.FromString(target.read_bytes()).file)


def page(files: Iterable[FileDescriptorProto], preface: str) -> str:
    """The whole page."""
    sources = {_stem(file.name): Source.of(file) for file in files}
    types = {f".{source.file.package}.{kind.name}": kind for source in sources.values() for kind in _types(source)}
    opening, _, following = preface.partition(CONTENTS)
    body = "\n".join((following.rstrip("\n"), *_Writer(types).lines(sources), ""))
    return opening + "\n".join(_contents(body)) + "\n" + body


class _Writer:
    """Writes each type once, where it is first needed."""

    def __init__(self, types: Mapping[str, Type]) -> None:
        self._types = types
        self._written: set[str] = set()

    def lines(self, sources: Mapping[str, Source]) -> Iterator[str]:
        """The chapters. What names an error reason leads to the catalogue, which is the last."""
        reasons = sources["error_reason"]
        named = re.compile(rf"(?<![\w`])({'|'.join(_reason_names(reasons))})(?![\w`])")
        for name in SERVICES:
            source = sources[f"{name}_service"]
            for index, service in enumerate(source.file.service):
                for line in self._service(service, source, (_SERVICE, index)):
                    yield named.sub(r"[`\1`](#error-reasons)", line)
        for line in self._shared(sources["types"], "Shared types"):
            yield named.sub(r"[`\1`](#error-reasons)", line)
        yield from self._shared(reasons, "Error reasons")

    def _service(self, service: ServiceDescriptorProto, source: Source, place: Place) -> Iterator[str]:
        yield f"\n## {service.name}\n"
        yield source.comment(*place)
        for index, method in enumerate(service.method):
            yield f"\n### {method.name}\n"
            yield source.comment(*place, _MEMBER, index)
            if method.name in NOT_SERVED:
                yield "\nNot served by this version: answered `UNIMPLEMENTED`, reason `UNSUPPORTED`."
            yield f"\n`{source.file.package}.{service.name}/{method.name}`: {self._signature(method)}"
            for name in (method.input_type, method.output_type):
                yield from self._with_what_it_needs(name, source)

    def _signature(self, method: MethodDescriptorProto) -> str:
        sent = ("a stream of " if method.client_streaming else "") + self._link(method.input_type)
        answered = ("a stream of " if method.server_streaming else "") + self._link(method.output_type)
        return f"{sent} → {answered}"

    def _with_what_it_needs(self, name: str, source: Source) -> Iterator[str]:
        """This type, then those of the same file that its fields name."""
        kind = self._types.get(name)
        if kind is None or kind.source is not source or name in self._written:
            return
        self._written.add(name)
        yield from self._type(kind, "####")
        if isinstance(kind.descriptor, DescriptorProto):
            for field in kind.descriptor.field:
                yield from self._with_what_it_needs(field.type_name, source)

    def _shared(self, source: Source, title: str) -> Iterator[str]:
        yield f"\n## {title}\n"
        yield source.comment(_SYNTAX)
        kinds = [kind for kind in self._types.values() if kind.source is source]
        # Messages first: they say what the enums are for.
        for kind in sorted(kinds, key=lambda kind: isinstance(kind.descriptor, EnumDescriptorProto)):
            yield from self._type(kind, "###")

    def _type(self, kind: Type, marks: str) -> Iterator[str]:
        yield f"\n{marks} {kind.name}\n"
        yield kind.source.comment(*kind.place)
        if isinstance(kind.descriptor, EnumDescriptorProto):
            yield from self._values(kind, kind.descriptor)
        else:
            yield from self._fields(kind, kind.descriptor)

    def _values(self, kind: Type, descriptor: EnumDescriptorProto) -> Iterator[str]:
        yield "\n| number | value | what it says |\n| --- | --- | --- |"
        for index, value in enumerate(descriptor.value):
            comment = kind.source.comment(*kind.place, _MEMBER, index)
            yield f"| {value.number} | `{value.name}` | {_cell(comment)} |"

    def _fields(self, kind: Type, descriptor: DescriptorProto) -> Iterator[str]:
        for index, oneof in enumerate(descriptor.oneof_decl):
            yield f"\nOf `{oneof.name}`: {_lowered(kind.source.comment(*kind.place, _ONEOF, index))}"
        if descriptor.field:
            yield "\n| number | field | type | what it is |\n| --- | --- | --- | --- |"
        for index, field in enumerate(descriptor.field):
            comment = kind.source.comment(*kind.place, _FIELD, index)
            yield f"| {field.number} | `{field.name}` | {self._field_type(field, descriptor)} | {_cell(comment)} |"

    def _field_type(self, field: FieldDescriptorProto, message: DescriptorProto) -> str:
        entry = next((nested for nested in message.nested_type if field.type_name.endswith(f".{nested.name}")), None)
        if entry is not None and entry.options.map_entry:
            key, value = (self._link(part.type_name) if part.type_name else _scalar(part) for part in entry.field)
            return f"map of {key} to {value}"
        text = self._link(field.type_name) if field.type_name else _scalar(field)
        if field.label == FieldDescriptorProto.LABEL_REPEATED:
            text += ", repeated"
        if field.HasField("oneof_index"):
            text += f", of `{message.oneof_decl[field.oneof_index].name}`"
        return text

    def _link(self, name: str) -> str:
        kind = self._types.get(name)
        if kind is None:
            return f"[`{name.rpartition('.')[2]}`]({ELSEWHERE[name]})"
        return f"[`{kind.name}`](#{anchor(kind.name)})"


def anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _reason_names(source: Source) -> list[str]:
    return [value.name.removeprefix("ERROR_REASON_") for value in source.file.enum_type[0].value]


def _types(source: Source) -> Iterator[Type]:
    for index, message in enumerate(source.file.message_type):
        yield from _messages(message, source, (_MESSAGE, index), "")
    for index, enum in enumerate(source.file.enum_type):
        yield Type(enum.name, source, (_ENUM, index), enum)


def _messages(message: DescriptorProto, source: Source, place: Place, prefix: str) -> Iterator[Type]:
    name = prefix + message.name
    yield Type(name, source, place, message)
    for index, nested in enumerate(message.nested_type):
        if not nested.options.map_entry:
            yield from _messages(nested, source, (*place, _NESTED, index), f"{name}.")


def _contents(text: str) -> Iterator[str]:
    """A line for each chapter, with what is in it."""
    chapters: list[tuple[str, list[str]]] = []
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for marks, heading in re.findall(r"^(##|###) (.+)$", prose, flags=re.MULTILINE):
        link = f"[{heading}](#{anchor(heading)})"
        if marks == "##":
            chapters.append((link, []))
        else:
            chapters[-1][1].append(link)
    for link, sections in chapters:
        yield f"- {link}" + (f": {' · '.join(sections)}" if sections else "")


def _paragraphs(comment: str) -> str:
    """A comment without its line breaks; an empty line still parts two paragraphs."""
    parts = re.split(r"\n\s*\n", comment.strip())
    return "\n\n".join(" ".join(line.strip() for line in part.splitlines()) for part in parts)


def _cell(comment: str) -> str:
    return comment.replace("\n\n", " ").replace("|", "\\|")


def _lowered(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def _scalar(field: FieldDescriptorProto) -> str:
    return f"`{FieldDescriptorProto.Type.Name(field.type).removeprefix('TYPE_').lower()}`"


def _stem(name: str) -> str:
    return Path(name).stem


if __name__ == "__main__":
    sys.exit(main())
