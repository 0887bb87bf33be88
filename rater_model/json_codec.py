"""One codec between dataclasses and JSON, for every file whose fields are documented.

A field says in its metadata if the file has another name for it, or leaves it out while it has its
default:

    rejected_by_reason: Counter[str] = dataclasses.field(metadata=stored_as("rejected"))
    draw: Draw | None = dataclasses.field(default=None, metadata=IF_SET)

A class with methods `to_json` and `from_json` describes itself. Decoding is strict: no field may be
missing unless it has a default, none may be unknown, and no type is converted into another.

cattrs loads with the first value, because the flags of a command load this module too.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import orjson

if TYPE_CHECKING:
    import cattrs

T = TypeVar("T")

IF_SET = {"omit_if_default": True}
"""Metadata of a field that the file leaves out while it has its default."""

NOT_STORED = {"omit": True}
"""Metadata of a field that the file never has; it needs a default."""


def stored_as(name: str) -> dict[str, Any]:
    """Returns the metadata of a field that has another name in the file."""
    return {"rename": name}


class DecodingError(ValueError):
    """JSON does not describe a value of a class; the message names the fields."""


def to_plain(value: Any) -> Any:
    """Returns a value as dicts, lists and scalars, with the fields in the order of the class."""
    return _converter().unstructure(value)


def from_plain(kind: type[T], plain: Any) -> T:
    """Returns the value that `to_plain` described.

    Raises:
        DecodingError: A field is missing, unknown, or of another type.
    """
    try:
        return _converter().structure(plain, kind)
    except Exception as error:
        import cattrs

        faults = cattrs.transform_error(error, format_exception=_describe)
        raise DecodingError(
            "; ".join(fault.replace(" @ $", " at $") for fault in faults)
        ) from error


def decode(kind: type[T], data: bytes) -> T:
    """Returns the value in a JSON document; raises as `from_plain` does."""
    try:
        plain = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise DecodingError(f"not JSON: {error}") from error
    return from_plain(kind, plain)


def _describe(fault: BaseException, kind: type | None) -> str:
    import cattrs

    if isinstance(fault, KeyError):
        return "missing field"
    if isinstance(fault, cattrs.ForbiddenExtraKeysError):
        return f"unknown field {', '.join(sorted(fault.extra_fields))}"
    return str(fault)


def _strict(value: Any, kind: type) -> Any:
    if issubclass(kind, enum.Enum):
        return kind(value)
    if type(value) is kind or (kind is float and type(value) is int):
        return value
    raise ValueError(f"expected {kind.__name__}, not {value!r}")


@functools.cache
def _converter() -> cattrs.Converter:
    """Returns the converter, made once."""
    import cattrs
    from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

    def overrides(kind: Any) -> dict[str, Any]:
        return {field.name: override(**field.metadata) for field in dataclasses.fields(kind)}

    converter = cattrs.Converter(
        forbid_extra_keys=True, unstruct_collection_overrides={tuple: list}
    )
    for kind in (str, int, float, bool):
        converter.register_structure_hook(kind, _strict)

    @converter.register_structure_hook_factory(dataclasses.is_dataclass)
    def structuring(kind: Any) -> Callable[..., Any]:
        return make_dict_structure_fn(kind, converter, **overrides(kind))

    @converter.register_unstructure_hook_factory(dataclasses.is_dataclass)
    def unstructuring(kind: Any) -> Callable[..., Any]:
        return make_dict_unstructure_fn(kind, converter, **overrides(kind))

    # A class that describes itself comes before the general rule for dataclasses.
    converter.register_structure_hook_func(
        lambda kind: hasattr(kind, "from_json"), lambda plain, kind: kind.from_json(plain)
    )
    converter.register_unstructure_hook_func(
        lambda kind: hasattr(kind, "to_json"), lambda value: value.to_json()
    )
    return converter
