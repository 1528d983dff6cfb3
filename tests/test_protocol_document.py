"""docs/protocol.md says what the code does: its bytes, its field tables, its error table and its limits."""

import re
import struct
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from tensord.daemon.knobs import KNOBS
from tensord.ipc import limits, wire
from tensord.ipc.errors import ERRORS, DuplicateRequestId, TensordError, UnknownHandle
from tensord.ipc.tensors import DType, ModelSpec, TensorSpec
from tensord.ipc.wire import (
    Flags,
    FrameReader,
    FrameType,
    Hello,
    InferHead,
    Lane,
    ResultHead,
    TensorHeader,
    Welcome,
    encode_arena,
    encode_error,
    encode_open,
    encode_opened,
    encode_result,
    frame,
)

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "docs" / "protocol.md").read_text()
WIRE_SOURCE = (ROOT / "ipc" / "wire.py").read_text()

Row = dict[str, str]

CODES = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "i64": "q"}

LAYOUTS = {
    "Header": wire.HEADER,
    "`HELLO`": wire.HELLO,
    "`WELCOME`": wire.WELCOME,
    "`OPEN`": wire.NAME,
    "`OPENED`": wire.OPENED,
    "Specification of a tensor": wire.SPEC,
    "Description of a free dimension": wire.DIMENSION,
    "`MODELS`": wire.COUNT,
    "Entry of MODELS": wire.MODEL,
    "Tensor header": wire.TENSOR,
    "`INFER`": wire.INFER,
    "`RESULT`": wire.RESULT,
    "`ATTACH`": wire.ARENA,
    "`ATTACHED`": wire.ARENA,
    "`DETACH`": wire.ARENA,
    "`ERROR`": wire.ERROR,
}

JSON_TYPES: dict[Any, str] = {str: "string", int: "integer", float: "number", list[str]: "array of strings"}


# ── reading the document ────────────────────────────────────────────────────────────────────────


def section(heading: str) -> str:
    """The text from a heading to the next one."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert found is not None, heading
    return found[1]


def table(text: str, first_column: str) -> list[Row]:
    """The rows of the first table whose first column has this title."""
    found = re.search(rf"^\| {re.escape(first_column)} \|(.*\n(?:\|.*\n)+)", text, re.MULTILINE)
    assert found is not None, first_column
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in found[0].splitlines()]
    titles = lines[0]
    return [dict(zip(titles, line, strict=True)) for line in lines[2:]]


def name_in(cell: str) -> str:
    """What stands between back-quotes."""
    found = re.fullmatch(r"`([A-Za-z0-9_]+)`", cell)
    assert found is not None, cell
    return found[1]


def number_in(cell: str) -> int:
    """A number with commas between thousands."""
    return int(cell.replace(",", ""))


def dumps() -> list[tuple[str, int, bytes]]:
    """Each hexadecimal dump: its frame's name, the length that it announces, its bytes."""
    found = []
    for title, body in re.findall(r"^```hex\n(.*)\n((?:.*\n)*?)```$", DOCUMENT, re.MULTILINE):
        announced = re.fullmatch(r"([A-Z]+), .*, (\d+) bytes", title)
        assert announced is not None, title
        content = b"".join(bytes.fromhex(line[:48]) for line in body.splitlines())
        found.append((announced[1], int(announced[2]), content))
    return found


# ── the conversation ────────────────────────────────────────────────────────────────────────────


def conversation() -> list[bytes]:
    """The frames that the document shows, as the codec makes them."""
    float32 = DType.FLOAT32
    x, y = TensorSpec("x", float32, (2,)), TensorSpec("y", float32, (2,))
    inline = TensorHeader(0, float32, (1, 2), 8).encode()
    arena_x = TensorHeader(0, float32, (1, 2), 8, Lane.ARENA, 1, 0).encode()
    arena_y = TensorHeader(0, float32, (), 8, Lane.ARENA, 1, 64).encode()
    result_y = TensorHeader(0, float32, (1, 2), 8, Lane.ARENA, 1, 64).encode()
    row, doubled = struct.pack("<2f", 1, 2), struct.pack("<2f", 2, 4)
    head = ResultHead(version=1, batch_rows=1, queue_us=12, compute_us=34, output_count=1)
    return [
        Hello(1, 1, "web").encode(1),
        Welcome(1, 0x0123456789ABCDEF, 1024, 1024**2, 1024**3).encode(1),
        encode_open(2, "double"),
        encode_opened(2, 1, ModelSpec("double", 1, (x,), (y,), 8, idempotent=True)),
        InferHead(1, 1, 1, 0, 0, 0).encode(3, inline, len(row)) + row,
        encode_result(head, 3, inline, len(doubled)) + doubled,
        encode_arena(FrameType.ATTACH, 4, 0, 4096),
        encode_arena(FrameType.ATTACHED, 4, 1, 4096),
        InferHead(1, 1, 1, 1, 0, 0).encode(5, arena_x + arena_y, 0),
        encode_result(head, 5, result_y, 0),
        InferHead(9, 1, 1, 0, 0, 0).encode(6, inline, len(row)) + row,
        encode_error(6, UnknownHandle(9)),
        frame(FrameType.CLOSE, 0),
    ]


def test_dumps_are_what_the_codec_produces() -> None:
    assert [content.hex(" ") for _, _, content in dumps()] == [content.hex(" ") for content in conversation()]


def test_dumps_have_the_name_and_length_of_their_title() -> None:
    shown = [(name, length) for name, length, _ in dumps()]
    assert shown == [(FrameType(content[2]).name, len(content)) for content in conversation()]


def test_dumps_annotate_every_header_field_with_its_value() -> None:
    for title, body in re.findall(r"^```hex\n(.*)\n((?:.*\n)*?)```$", DOCUMENT, re.MULTILINE):
        lines = [(bytes.fromhex(line[:48]), line[49:]) for line in body.splitlines()]
        for content, label in lines:
            value = re.match(r"(?:(?:in|out)put 0: )?\w+(?:\[\d\])? (0x[0-9a-f]+|\d+)\b(?!\.)", label)
            if value is not None:
                assert int.from_bytes(content, "little") == int(value[1], 0), f"{title}: {label}"


def test_dumps_are_frames_to_a_reader() -> None:
    class Sink:
        def __init__(self) -> None:
            self.seen: list[str] = []

        def frame_started(
            self, frame_type: int, flags: int, request_id: int, meta: memoryview, payload_bytes: int
        ) -> None:
            self.seen.append(FrameType(frame_type).name)

        def frame_finished(self) -> None:
            pass

    sink = Sink()
    reader = FrameReader(sink, memoryview(bytearray(4096)))
    for _, _, content in dumps():
        reader.get_buffer()[: len(content)] = content
        reader.buffer_updated(len(content))
    assert sink.seen == [name for name, _, _ in dumps()]
    assert not reader.mid_frame


# ── fields ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("heading", LAYOUTS)
def test_fields_have_the_offsets_and_types_of_the_codec(heading: str) -> None:
    rows = table(section(heading), "offset")
    fixed = [row for row in rows if row["type"] in CODES]
    form = LAYOUTS[heading]
    assert "<" + "".join(CODES[row["type"]] for row in fixed) == form.format
    offsets = [
        struct.calcsize("<" + "".join(CODES[row["type"]] for row in fixed[:index])) for index in range(len(fixed))
    ]
    assert [int(row["offset"]) for row in fixed] == offsets
    for row in rows[len(fixed) : len(fixed) + 1]:
        assert int(row["offset"]) == form.size


@pytest.mark.parametrize("heading", LAYOUTS)
def test_fields_have_the_names_of_the_codec(heading: str) -> None:
    for row in table(section(heading), "offset"):
        if row["type"] in CODES:
            assert f"{name_in(row['field'])} {row['type']}" in WIRE_SOURCE


def test_magic_is_the_codecs() -> None:
    assert f"{wire.MAGIC:#06x}" in table(section("Header"), "offset")[0]["meaning"]


def test_frame_types_are_all_listed() -> None:
    rows = table(section("Frame types"), "type")
    assert {int(row["type"]): name_in(row["name"]) for row in rows} == {each.value: each.name for each in FrameType}


def test_frame_types_are_sent_by_whom_the_codec_says() -> None:
    for row in table(section("Frame types"), "type"):
        comment = re.search(rf"^    {name_in(row['name'])} = \d+  # (.*)$", WIRE_SOURCE, re.MULTILINE)
        assert comment is not None
        senders = {letter for letter in "cd" if re.search(rf"\b{letter}:", comment[1])}
        assert senders == {"client": {"c"}, "daemon": {"d"}, "both": {"c", "d"}}[row["sender"]]


def test_flags_are_all_listed() -> None:
    rows = table(section("Header"), "flag")
    assert {name_in(row["flag"]): int(row["value"]) for row in rows} == {each.name: each.value for each in Flags}


def test_dtypes_are_all_listed() -> None:
    rows = table(section("Tensors"), "dtype")
    listed = [(int(row["dtype"]), name_in(row["name"]), int(row["bytes"])) for row in rows]
    assert listed == [(each.value, each.label, each.itemsize) for each in DType]


# ── errors and limits ───────────────────────────────────────────────────────────────────────────


def data_of(error: type[TensordError]) -> str:
    """The members of the JSON object, as the document writes them."""
    return "; ".join(f"`{each.name}`: {JSON_TYPES[each.type]}" for each in fields(error)) or "–"  # type: ignore[arg-type]


def test_error_table_is_the_codes() -> None:
    rows = table(section("The error table"), "code")
    listed = [(int(row["code"]), name_in(row["name"]), row["at fault"], row["retry"], row["data"]) for row in rows]
    assert listed == [
        (code, error.__name__, str(error.fault), error.retry.name.lower(), data_of(error))
        for code, error in sorted(ERRORS.items())
    ]
    assert all(row["when"] for row in rows)


def test_errors_named_in_the_text_exist() -> None:
    known = {error.__name__ for error in ERRORS.values()}
    named = set(re.findall(r"`([A-Z][a-z]+(?:[A-Z][A-Za-z]*)+)`", DOCUMENT))
    assert named <= known


def test_errors_of_the_connection_have_their_codes() -> None:
    rows = table(section("`ERROR`"), "code")
    listed = {int(code): name for row in rows for code, name in re.findall(r"(\d+) `(\w+)`", row["code"])}
    assert listed == {code: ERRORS[code].__name__ for code in listed}
    assert DuplicateRequestId.code in listed


def test_limits_are_those_of_the_code() -> None:
    for row in table(section("Limits"), "name"):
        assert number_in(row["value"]) == getattr(limits, name_in(row["name"])), row["name"]


def test_knobs_have_their_defaults() -> None:
    for row in table(section("Limits"), "knob"):
        knob = KNOBS[name_in(row["knob"])]
        assert row["default"] == knob.format(knob.default)


def test_bounds_in_the_header_are_the_limits() -> None:
    meaning = {name_in(row["field"]): row["meaning"] for row in table(section("Header"), "offset")}
    meta_bytes = f"at most {limits.REQUEST_META_BYTES_MAX:,} from clients, {limits.META_BYTES_MAX:,} from the daemon"
    assert meta_bytes in meaning["meta_bytes"]
    assert f"at most {limits.PAYLOAD_BYTES_MAX:,}" in meaning["payload_bytes"]


def test_links_inside_the_document_lead_somewhere() -> None:
    headings = re.findall(r"^#+ (.*)$", DOCUMENT, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]*)\)", DOCUMENT)) <= anchors
