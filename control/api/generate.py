"""Makes what comes from `nyx_v1.proto`: the code in control/api/generated and the tables of docs/api.md. `make api` runs it.

It needs the packages for development; a running node does not. A test compares the tree with what this makes.
"""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from google.protobuf import descriptor_pb2

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parents[1]
PAGE: Final = ROOT / "docs" / "api.md"
BEGIN: Final = "<!-- made from control/api/nyx_v1.proto by: make api -->"
END: Final = "<!-- end of what is made -->"
_NAME: Final = "control/api/generated/nyx_v1.proto"  # decides where the code is, and how its modules import each other
_SERVICE, _MESSAGE, _FIELD, _METHOD = 6, 4, 2, 2  # field numbers of descriptor.proto, which paths of comments are made of
SCALARS: Final = {1: "double", 3: "int64", 4: "uint64", 5: "int32", 8: "bool", 9: "string", 12: "bytes", 13: "uint32"}
_MAP_ENTRY: Final = 2


def code(folder: Path) -> list[Path]:
    """Write the code below this folder; the files."""
    tools = Path(sys.executable).parent
    plugins = [f"--plugin=protoc-gen-{name}={tools / f'protoc-gen-{name}'}" for name in ("mypy", "mypy_grpc")]
    outputs = [f"--{name}_out={folder}" for name in ("python", "grpc_python", "mypy", "mypy_grpc")]
    _protoc(*plugins, *outputs)
    return sorted((folder / _NAME).parent.glob("nyx_v1_pb2*"))


def page(text: str) -> str:
    """The page with its tables made anew. Raises ValueError where it lacks the marks."""
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    made = "\n".join([*_tables(_described()), *_errors()])
    return f"{text[:start]}\n\n{made}\n{text[end:]}"


def _protoc(*arguments: str) -> None:
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{Path(_NAME).parent}={HERE}", *arguments, _NAME]
    subprocess.run(command, check=True, cwd=ROOT)


def _described() -> descriptor_pb2.FileDescriptorProto:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "set")
        _protoc("--include_source_info", f"--descriptor_set_out={file}")
        return descriptor_pb2.FileDescriptorSet.FromString(file.read_bytes()).file[0]


def _tables(file: descriptor_pb2.FileDescriptorProto) -> Iterator[str]:
    comments = {tuple(l.path): " ".join(l.leading_comments.split()) for l in file.source_code_info.location}
    for i, service in enumerate(file.service):
        yield from (f"### {file.package}.{service.name}", "", comments.get((_SERVICE, i), ""), "")
        yield from ("| method | takes | gives | what it does |", "| --- | --- | --- | --- |")
        for j, method in enumerate(service.method):
            takes, gives = _message(method.input_type), _message(method.output_type)
            takes, gives = _many(takes, method.client_streaming), _many(gives, method.server_streaming)
            yield f"| `{method.name}` | {takes} | {gives} | {comments.get((_SERVICE, i, _METHOD, j), '')} |"
        yield ""
    yield from ("### Messages", "")
    for i, message in enumerate(file.message_type):
        if message.field:
            yield from (f"#### {message.name}", "", *_about(comments.get((_MESSAGE, i), "")))
            yield from ("| field | type | what it is |", "| --- | --- | --- |", *_fields(message, i, comments), "")


def _errors() -> Iterator[str]:
    from control.api.errors import KINDS

    yield from ("### Errors", "", "The code is in the trailing metadata `nyx-error-code`; `nyx-error-bin` is an `Error`.", "")
    yield from ("| code | status | advice |", "| --- | --- | --- |")
    yield from (f"| `{code}` | {kind.status.name} | {kind.advice} |" for code, kind in KINDS.items())


def _about(text: str) -> Sequence[str]:
    return (text, "") if text else ()


def _fields(message: descriptor_pb2.DescriptorProto, place: int, comments: dict[tuple[int, ...], str]) -> Iterator[str]:
    maps = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
    for j, field in enumerate(message.field):
        kind = _type(field)
        if entry := maps.get(field.type_name.rpartition(".")[2]):
            kind = f"map of {_type(entry.field[0])} to {_type(entry.field[_MAP_ENTRY - 1])}"
        elif field.label == field.LABEL_REPEATED:
            kind = f"list of {kind}"
        elif field.proto3_optional:
            kind += ", optional"
        elif field.HasField("oneof_index"):
            kind += ", one of"
        yield f"| `{field.name}` | {kind} | {comments.get((_MESSAGE, place, _FIELD, j), '')} |"


def _type(field: Any) -> str:
    return _message(field.type_name) if field.type_name else SCALARS[field.type]


def _message(name: str) -> str:
    short = name.rpartition(".")[2]
    return f"`{short}`"


def _many(name: str, streams: bool) -> str:
    return f"stream of {name}" if streams else name


def main() -> int:
    """Write everything."""
    code(ROOT)
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
