"""Makes JSON lines of documents, and adds scores to them."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any

import numpy as np
import orjson

from datarater.rater_model.documents.records import ReadOptions

SCORE_FIELD = "datarater_score"
_SCORE_NAME = SCORE_FIELD.encode()
# The name as a key, with any of its letters escaped.
_SCORE_KEY = re.compile(
    rb'"'
    + b"".join(rb"(?:%c|\\u00%02x|\\u00%02X)" % (code, code, code) for code in _SCORE_NAME)
    + rb'"\s*:'
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_SPACE = re.compile(r"[ \t\r\n]*")
_DEEP = 5000


def load_json(raw: bytes) -> Any:
    """Parses JSON, with whole numbers of any size exact."""
    return _at_any_depth(json.loads, raw)


def dump_json(value: Any, sort_keys: bool = False) -> str:
    """Returns a value as JSON without spaces; lone surrogates are escaped.

    Args:
        value: A value that `load_json` may have returned.
        sort_keys: Whether the keys of objects are sorted.
    """
    text: str = _at_any_depth(
        lambda: json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=sort_keys)
    )
    return storable(text)


def storable(text: str) -> str:
    r"""Returns a text with its lone surrogates, which UTF-8 cannot express, escaped as in JSON.

    Example:
        >>> storable("a\ud800")
        'a\\ud800'
    """
    if text.isascii():
        return text
    return _SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _at_any_depth(step: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return step(*arguments)
    except RecursionError:
        # Documents are read up to 1024 levels deep; Python's own limit is a little lower.
        sys.setrecursionlimit(max(sys.getrecursionlimit(), _DEEP))
        return step(*arguments)


# How an escaped letter of the score's name begins. Looking for these is faster than for the key.
_ESCAPES_OF_NAME = (b"\\u005", b"\\u006", b"\\u007")


def id_of_key(key: str) -> Any:
    """Returns the id that a document's key was made from, or the digest that replaces it."""
    return key if key.startswith("sha256:") else load_json(key.encode())


def id_text(key: str) -> str:
    """Returns the id that a document's key was made from as text: JSON, unless it is a string."""
    value = id_of_key(key)
    return storable(value) if isinstance(value, str) else dump_json(value)


def as_line(options: ReadOptions, identifier: Any, text: str, more: Mapping[str, Any]) -> bytes:
    """Returns the JSON line for a document that was not stored as JSON.

    Args:
        options: Options with the names of the fields for id and text.
        identifier: Id of the document.
        text: Text of the document.
        more: Other fields.
    """
    return orjson.dumps({options.id_field: identifier, options.text_field: text, **more})


def score_text(score: float) -> str:
    """Returns the shortest JSON text that reads back as the same float32."""
    return str(np.float32(score))


def _without_field(text: str, name: str) -> str:
    """Returns a JSON object without the fields of a name; all other characters are unchanged."""
    decoder = json.JSONDecoder()
    begin = text.index("{") + 1
    spans: list[tuple[int, int, bool]] = []
    at = _skip_space(text, begin)
    while text[at] != "}":
        start = at
        key, at = scanstring(text, at + 1)
        at = _skip_space(text, _skip_space(text, at) + 1)  # the colon
        _, at = decoder.raw_decode(text, at)
        spans.append((start, at, key == name))
        at = _skip_space(text, at)
        if text[at] == ",":
            at = _skip_space(text, at + 1)

    # A field goes with the comma after it; the last ones with the comma before them.
    kept = [span for span in spans if not span[2]]
    if not kept:
        return text[:begin] + text[at:]
    parts = [text[:begin], text[begin : spans[0][0]]]
    for index, (start, end, is_removed) in enumerate(spans):
        if not is_removed:
            is_last = (start, end, is_removed) == kept[-1]
            parts.append(text[start : end if is_last else spans[index + 1][0]])
    parts.append(text[spans[-1][1] :])
    return "".join(parts)


def _skip_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None
    return match.end()


def scored_line(raw: bytes, score: float) -> bytes:
    r"""Returns a JSONL line with its score added and all other bytes unchanged.

    Args:
        raw: The line without its `\n`: one JSON object.
        score: Score of the document.

    Example:
        >>> scored_line(b'{"text": "a"}\r', 0.5)
        b'{"text": "a","datarater_score":0.5}\r'
    """
    may_have = _SCORE_NAME in raw or (
        b"\\u00" in raw and any(escape in raw for escape in _ESCAPES_OF_NAME)
    )
    if may_have and _SCORE_KEY.search(raw) is not None:
        text: str = _at_any_depth(_without_field, raw.decode(), SCORE_FIELD)
        raw = text.encode()
    brace = raw.rindex(b"}")
    comma = b"" if raw[:brace].rstrip().endswith(b"{") else b","
    return b'%s%s"%s":%s%s' % (
        raw[:brace],
        comma,
        _SCORE_NAME,
        score_text(score).encode(),
        raw[brace:],
    )
