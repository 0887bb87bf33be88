"""Reads TFRecord files of `tf.train.Example`, without TensorFlow.

A record is a length, a masked CRC-32C of it, the data and a masked CRC-32C of that. Features become
the fields of a JSON object: one value as itself, several as a list; bytes that are UTF-8 as text,
others as base64. The names of fields are those of the features (`text`, or `metadata/url`, which
may also be given as `metadata.url`).

Source: tensorflow/core/lib/io/record_writer.h, tensorflow/core/example/{example,feature}.proto.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import google_crc32c
import orjson

from datarater.rater_model.documents.byte_reader import ByteReader
from datarater.rater_model.documents.file_format import FileFormat
from datarater.rater_model.documents.json_lines import SCORE_FIELD
from datarater.rater_model.documents.jsonl import document_of
from datarater.rater_model.documents.records import (
    EXCERPT_BYTES,
    BadRecord,
    Compression,
    Document,
    ReadOptions,
    Reason,
    Record,
    Split,
)
from datarater.rater_model.documents.sniffing import FileHead

_HEADER_BYTES = 12
_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5


def _checksum(data: bytes) -> bytes:
    """Returns the masked CRC-32C of bytes, as it is stored."""
    crc: int = google_crc32c.value(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def _is_length(header: bytes) -> bool:
    """Reports whether bytes are a record's length and its checksum."""
    return len(header) == _HEADER_BYTES and _checksum(header[:8]) == header[8:]


class NotAnExampleError(ValueError):
    """A record's data is not a `tf.train.Example`."""


def varint(data: bytes, at: int) -> tuple[int, int]:
    """Returns the integer of a varint, and the place after it.

    Args:
        data: Bytes with the varint.
        at: Place where it begins.

    Raises:
        NotAnExampleError: if it has no end.
    """
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise NotAnExampleError("a number has no end")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
        shift += 7


def wire_fields(data: bytes) -> Iterator[tuple[int, int, Any]]:
    """Yields the fields of a protocol buffer: number, wire type, value.

    Raises:
        NotAnExampleError: if the data is not a protocol buffer.
    """
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, at = varint(data, at)
            yield number, kind, value
            continue

        # The other wire types are a number of bytes.
        if kind == _BYTES:
            size, at = varint(data, at)
        elif kind in (_FIXED_32, _FIXED_64):
            size = 4 if kind == _FIXED_32 else 8
        else:
            raise NotAnExampleError(f"wire type {kind}")
        if at + size > len(data):
            raise NotAnExampleError("a field is longer than its message")
        yield number, kind, data[at : at + size]
        at += size


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _values(feature: bytes) -> list[Any]:
    """Returns the values of a feature: bytes, floats or integers."""
    values: list[Any] = []
    for number, kind, payload in wire_fields(feature):
        if kind != _BYTES or number not in (1, 2, 3):
            raise NotAnExampleError("a feature is not a list of bytes, floats or integers")

        for inner, inner_kind, value in wire_fields(payload):
            if inner != 1:
                raise NotAnExampleError("a list has an unknown field")
            if number == 1 and inner_kind == _BYTES:
                values.append(value)
            elif number == 2 and inner_kind in (_BYTES, _FIXED_32) and len(value) % 4 == 0:
                values += struct.unpack(f"<{len(value) // 4}f", value)
            elif number == 3 and inner_kind == _VARINT:
                values.append(_signed(value))
            elif number == 3 and inner_kind == _BYTES:
                at = 0
                while at < len(value):
                    one, at = varint(value, at)
                    values.append(_signed(one))
            else:
                raise NotAnExampleError("a value is not of its list's kind")
    return values


def parse_example(data: bytes) -> dict[str, list[Any]]:
    """Returns the features of a serialized `tf.train.Example`, each a list of its values, by name.

    Raises:
        NotAnExampleError: if the data is not an example.
    """
    parsed: dict[str, list[Any]] = {}
    for number, kind, features in wire_fields(data):
        if number != 1 or kind != _BYTES:
            raise NotAnExampleError("it has a field other than features")
        for entry_number, entry_kind, entry in wire_fields(features):
            if entry_number != 1 or entry_kind != _BYTES:
                raise NotAnExampleError("the features are not a map")

            # An entry of a map is a message with a key and a value.
            name, feature = "", b""
            for part, part_kind, value in wire_fields(entry):
                if part_kind != _BYTES or part not in (1, 2):
                    raise NotAnExampleError("a feature has no name")
                if part == 1:
                    try:
                        name = value.decode()
                    except UnicodeDecodeError:
                        raise NotAnExampleError("a feature's name is not UTF-8") from None
                else:
                    feature = value
            parsed[name] = _values(feature)
    return parsed


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode("ascii")
    return value


def _fields(features: dict[str, list[Any]]) -> dict[str, Any]:
    return {
        name: _plain(values[0]) if len(values) == 1 else [_plain(value) for value in values]
        for name, values in features.items()
    }


def _named(fields: dict[str, Any], name: str) -> Any:
    """Returns a field by its name or dotted path; None if it is missing.

    TensorFlow Datasets writes nested features as `metadata/url`.
    """
    return fields[name] if name in fields else fields.get(name.replace(".", "/"))


def _message(number: int, data: bytes) -> bytes:
    """Returns a length-prefixed field of a protocol buffer."""
    size, prefix = len(data), bytearray([number << 3 | _BYTES])
    while size >= 0x80:
        prefix.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*prefix, size]) + data


def with_float(data: bytes, name: str, value: float) -> bytes:
    """Returns a serialized `tf.train.Example` with one more feature, a float.

    The existing bytes are unchanged and come first: concatenated messages are merged, and the
    last feature of a name wins.

    Source: protobuf.dev/programming-guides/encoding, "Last One Wins".
    """
    return data + _message(1, _entry(name, value))


def make_example(fields: Mapping[str, str | float]) -> bytes:
    """Returns a serialized `tf.train.Example` with a feature of one value for each field."""
    return _message(1, b"".join(_entry(name, value) for name, value in fields.items()))


def _entry(name: str, value: str | float) -> bytes:
    """Returns an entry of the map of features: a name and a list of one text or float."""
    if isinstance(value, str):
        feature = _message(1, _message(1, value.encode()))
    else:
        feature = _message(2, _message(1, struct.pack("<f", value)))
    return _message(1, _message(1, name.encode()) + _message(2, feature))


def read_example(data: bytes, start: int, options: ReadOptions) -> Record:
    """Returns the record of a serialized `tf.train.Example`, or the bad record that says why not.

    Args:
        data: Bytes of the example.
        start: Position of the record.
        options: Options with the names of the fields; a dot means the slash of a nested feature.
    """
    try:
        features = parse_example(data)
    except NotAnExampleError as error:
        detail = f"the record is not a tf.train.Example: {error}"
        return BadRecord(start, Reason.RECORD_CORRUPT, detail, data[:EXCERPT_BYTES])

    # Bytes that are not UTF-8 would become base64, which is not the text.
    raw_text = _named(features, options.text_field) or [None]
    if len(raw_text) == 1 and isinstance(raw_text[0], bytes):
        try:
            raw_text[0].decode()
        except UnicodeDecodeError as error:
            detail = (
                f"the feature {options.text_field!r} is not UTF-8: {error.reason} at byte "
                f"{error.start}"
            )
            return BadRecord(start, Reason.TEXT_NOT_UNICODE, detail, raw_text[0][:EXCERPT_BYTES])

    fields = _fields(features)
    text, identifier, source = (
        _named(fields, name)
        for name in (options.text_field, options.id_field, options.source_field)
    )
    record = document_of(text, identifier, source, start, data, options)
    if isinstance(record, BadRecord) and not record.excerpt:
        return BadRecord(start, record.reason, record.detail, data[:EXCERPT_BYTES])
    return record


class ExampleFormat(FileFormat):
    """A format that stores a `tf.train.Example` per record; written as TFRecord."""

    written_as = "tfrecord"
    nested_separator = "/"

    def json_line(self, document: Document, options: ReadOptions) -> bytes:
        """Returns all features of an example."""
        return orjson.dumps(_fields(parse_example(document.raw or b"")))

    def scored_record(self, document: Document, score: float, options: ReadOptions) -> bytes:
        """Returns the example's own bytes, followed by a feature with the score."""
        return with_float(document.raw or b"", SCORE_FIELD, score)


class TFRecord(ExampleFormat):
    """TFRecord files, plain or compressed."""

    name = "tfrecord"

    def sniff(self, head: FileHead) -> Compression | None:
        """Recognizes a file by the checksum of the first record's length."""
        return head.compression if _is_length(head.unpacked[:_HEADER_BYTES]) else None

    def read(self, split: Split, options: ReadOptions) -> Iterator[Record]:
        """Reads the records of a file.

        Positions are offsets in the decompressed stream. Damaged data costs its own record; a
        damaged length costs everything after it, since nothing marks where the next record begins.
        """
        with ByteReader(split, options.max_zstd_window_bytes) as reader:
            while True:
                start = reader.position
                header = reader.read(_HEADER_BYTES)
                if not header or reader.failure is not None:
                    break
                if len(header) < _HEADER_BYTES:
                    yield reader.ended_early(start, header, "record")
                    break

                # The length, with its checksum.
                if not _is_length(header):
                    detail = (
                        "the record's length does not match its checksum; this record and all "
                        "after it are lost"
                    )
                    yield BadRecord(start, Reason.RECORD_CORRUPT, detail, header)
                    return
                length = int.from_bytes(header[:8], "little")
                if length > options.max_record_bytes:
                    if reader.skip(length + 4) == length + 4:
                        detail = (
                            f"the record has {length} bytes, more than the limit of "
                            f"{options.max_record_bytes} (max_record_bytes)"
                        )
                        yield BadRecord(start, Reason.RECORD_TOO_LARGE, detail, header)
                        continue
                    if reader.failure is None:
                        yield reader.ended_early(start, header, "record")
                    break

                # The data, with its checksum.
                data, checksum = reader.read(length), reader.read(4)
                if len(checksum) < 4:
                    if reader.failure is None:
                        yield reader.ended_early(start, data, "record")
                    break
                if _checksum(data) != checksum:
                    detail = (
                        "the data does not match its checksum; reading continues with the next "
                        "record"
                    )
                    yield BadRecord(start, Reason.RECORD_CORRUPT, detail, data[:EXCERPT_BYTES])
                    continue
                yield read_example(data, start, options)
            if reader.failure is not None:
                yield reader.broken(start)

    def frame(self, record: bytes) -> bytes:
        """Returns the record between its length and its checksum."""
        length = struct.pack("<Q", len(record))
        return b"".join((length, _checksum(length), record, _checksum(record)))
