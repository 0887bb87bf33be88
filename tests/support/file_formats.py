"""Files of the formats that crawls and TensorFlow write, byte by byte."""

from __future__ import annotations

import bz2
import gzip
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import zstandard


def masked(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def length_prefixed(number: int, payload: bytes) -> bytes:
    size, prefix = len(payload), bytearray([number << 3 | 2])
    while size >= 0x80:
        prefix.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*prefix, size]) + payload


def feature(value: Any) -> bytes:
    if isinstance(value, float):
        return length_prefixed(2, length_prefixed(1, struct.pack("<f", value)))
    if isinstance(value, int):
        varint, left = bytearray(), value & 0xFFFFFFFFFFFFFFFF
        while left >= 0x80:
            varint.append(left & 0x7F | 0x80)
            left >>= 7
        return length_prefixed(3, length_prefixed(1, bytes([*varint, left])))
    data = value.encode() if isinstance(value, str) else value
    return length_prefixed(1, length_prefixed(1, data))


def tfrecord_of(rows: Sequence[Mapping[str, Any]]) -> bytes:
    out = bytearray()
    for row in rows:
        entries = b"".join(
            length_prefixed(
                1, length_prefixed(1, name.encode()) + length_prefixed(2, feature(value))
            )
            for name, value in row.items()
        )
        data = length_prefixed(1, entries)
        head = struct.pack("<Q", len(data))
        out += head + masked(head) + data + masked(data)
    return bytes(out)


def wet_of(rows: Sequence[Mapping[str, Any]]) -> bytes:
    out = bytearray(b"WARC/1.0\r\nWARC-Type: warcinfo\r\nContent-Length: 4\r\n\r\na: b\r\n\r\n")
    for row in rows:
        text = row["text"].encode()
        out += (
            "WARC/1.0\r\nWARC-Type: conversion\r\n"
            f"WARC-Target-URI: https://example.org/{row['id']}\r\n"
            f"WARC-Date: 2024-05-18T01:58:10Z\r\nWARC-Record-ID: <urn:uuid:{row['id']}>\r\n"
            "WARC-Identified-Content-Language: eng\r\nContent-Type: text/plain\r\n"
            f"Content-Length: {len(text)}\r\n\r\n"
        ).encode()
        out += text + b"\r\n\r\n"
    return bytes(out)


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def unpacked(path: Path) -> bytes:
    """A file's content, whatever it is packed in."""
    data = path.read_bytes()
    if path.suffix == ".zst":
        with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as reader:
            return reader.read()
    return {".gz": gzip.decompress, ".bz2": bz2.decompress}.get(path.suffix, bytes)(data)


def examples_of(data: bytes) -> list[bytes]:
    """The records of a TFRecord file, checksums checked."""
    found = []
    while data:
        (length,) = struct.unpack_from("<Q", data)
        assert data[8:12] == masked(data[:8])
        found.append(data[12 : 12 + length])
        assert data[12 + length : 16 + length] == masked(found[-1])
        data = data[16 + length :]
    return found
