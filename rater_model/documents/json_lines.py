"""Makes JSON lines of documents, and adds scores to them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import orjson

from datarater.rater_model.documents.records import ReadOptions

SCORE_FIELD = "datarater_score"
_SCORE_NAME = SCORE_FIELD.encode()
_DEEP = 5000


def load_json(raw: bytes) -> Any:
    """Parses JSON, with whole numbers of any size exact."""
    return _at_any_depth(json.loads, raw)


def dump_json(value: Any) -> str:
    """Returns a value as JSON without spaces."""
    text: str = _at_any_depth(lambda: json.dumps(value, ensure_ascii=False, separators=(",", ":")))
    return text


def _at_any_depth(step: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return step(*arguments)
    except RecursionError:
        # Documents are read up to 1024 levels deep; Python's own limit is a little lower.
        sys.setrecursionlimit(max(sys.getrecursionlimit(), _DEEP))
        return step(*arguments)


def id_of_key(key: str) -> Any:
    """Returns the id that a document's key was made from, or the digest that replaces it."""
    return key if key.startswith("sha256:") else load_json(key.encode())


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


def scored_line(raw: bytes, score: float) -> bytes:
    r"""Returns a JSONL line with its score added and all other bytes unchanged.

    Args:
        raw: The line without its `\n`: one JSON object.
        score: Score of the document.

    Example:
        >>> scored_line(b'{"text": "a"}\r', 0.5)
        b'{"text": "a","datarater_score":0.5}\r'
    """
    if _SCORE_NAME in raw:
        fields = load_json(raw)
        if SCORE_FIELD in fields:
            del fields[SCORE_FIELD]
            raw = dump_json(fields).encode("utf-8") + raw[len(raw.rstrip()) :]
    brace = raw.rindex(b"}")
    comma = b"" if raw[:brace].rstrip().endswith(b"{") else b","
    return b'%s%s"%s":%s%s' % (
        raw[:brace],
        comma,
        _SCORE_NAME,
        score_text(score).encode(),
        raw[brace:],
    )
