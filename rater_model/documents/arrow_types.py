"""Handles Arrow types that not every function of the library accepts: views, encodings, extensions.

A type is mapped at its leaves: within lists, structs and maps of any depth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_Leaf = Callable[[pa.DataType], pa.DataType]


def mapped_type(kind: pa.DataType, leaf: _Leaf) -> pa.DataType:
    """Returns a type with `leaf` applied to the innermost types of lists, structs and maps.

    Encodings are replaced by what they encode, list views by lists. An extension is a leaf.
    """
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return mapped_type(kind.value_type, leaf)
    if pa.types.is_map(kind):
        return pa.map_(mapped_type(kind.key_type, leaf), mapped_type(kind.item_type, leaf))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(mapped_type(field.type, leaf)) for field in kind])
    if pa.types.is_large_list(kind) or pa.types.is_large_list_view(kind):
        return pa.large_list(mapped_type(kind.value_type, leaf))
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_list_view(kind):
        return pa.list_(mapped_type(kind.value_type, leaf))
    return leaf(kind)


def without_view(kind: pa.DataType) -> pa.DataType:
    """Returns the plain type of a view of strings or bytes, or of what an extension stores."""
    if isinstance(kind, pa.BaseExtensionType):
        return mapped_type(kind.storage_type, without_view)
    if pa.types.is_string_view(kind):
        return pa.string()
    return pa.binary() if pa.types.is_binary_view(kind) else kind


def is_text(kind: pa.DataType) -> bool:
    """Reports whether values of a type are strings or bytes, which may be a text in UTF-8."""
    kind = mapped_type(kind, without_view)
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
    )


def is_nested_with_view(kind: pa.DataType) -> bool:
    """Reports whether a type is a list view, or is nested and contains a view of any kind.

    Columns of such a type cannot be changed back from dictionaries.
    """
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        return True
    return any(_has_view(one) or is_nested_with_view(one) for one in _inner(kind))


def _has_view(kind: pa.DataType) -> bool:
    """Reports whether a type is or contains a view of strings or bytes."""
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    is_view = pa.types.is_string_view(kind) or pa.types.is_binary_view(kind)
    return bool(is_view) or any(map(_has_view, _inner(kind)))


def _has_map_or_list_view(kind: pa.DataType) -> bool:
    """Reports whether a type is or contains one that views cannot be made in."""
    tests = (pa.types.is_map, pa.types.is_list_view, pa.types.is_large_list_view)
    return any(test(kind) for test in tests) or any(map(_has_map_or_list_view, _inner(kind)))


def has_list(kind: pa.DataType) -> bool:
    """Reports whether a type is or contains a list or map, so that a value has many values."""
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    is_struct = pa.types.is_struct(kind)
    return (pa.types.is_nested(kind) and not is_struct) or any(map(has_list, _inner(kind)))


def _inner(kind: pa.DataType) -> list[pa.DataType]:
    return [kind.field(index).type for index in range(kind.num_fields)]


def take_rows(table: pa.Table, rows: pa.Array) -> pa.Table:
    """Returns rows of a table, with columns of every type."""
    columns = [_take(column, rows) for column in table.columns]
    # A view of which no function makes another one stays plain.
    fields = [
        field.with_type(column.type) for field, column in zip(table.schema, columns, strict=True)
    ]
    return pa.Table.from_arrays(columns, schema=pa.schema(fields, table.schema.metadata))


def _take(column: pa.ChunkedArray, rows: pa.Array) -> pa.ChunkedArray:
    # The library cannot take rows of a view, and ends the process where the view is in a map.
    if not _has_view(column.type):
        return column.take(rows)
    taken = column.cast(mapped_type(column.type, without_view)).take(rows)
    return taken if _has_map_or_list_view(column.type) else taken.cast(column.type)


def cast_batch(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Returns a batch that was read with dictionaries, with the types of the file's schema."""
    columns = []
    for column, field in zip(batch.columns, schema, strict=True):
        try:
            columns.append(column.cast(field.type))
        except pa.ArrowNotImplementedError:
            # A dictionary is not cast to a view in one step.
            columns.append(column.cast(mapped_type(field.type, without_view)).cast(field.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def expanded_bytes(column: pa.Array) -> int:
    """Returns the bytes of a column, with its dictionaries of strings expanded."""
    total = 0 if pa.types.is_dictionary(column.type) else column.nbytes
    for array in _dictionaries(column):
        values = array.dictionary
        if is_text(values.type) and len(values):
            lengths = pc.binary_length(values.cast(mapped_type(values.type, without_view)))
            total += pc.sum(lengths.take(array.indices)).as_py() or 0
    return total


def _dictionaries(column: pa.Array) -> Iterator[pa.DictionaryArray]:
    kind = column.type
    if pa.types.is_dictionary(kind):
        yield column
    elif pa.types.is_struct(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        for child in column.flatten() if pa.types.is_struct(kind) else [column.flatten()]:
            yield from _dictionaries(child)
    elif pa.types.is_fixed_size_list(kind):
        yield from _dictionaries(column.flatten())
    elif pa.types.is_map(kind):
        entry = pa.struct([pa.field("key", kind.key_type), pa.field("value", kind.item_type)])
        yield from _dictionaries(column.cast(pa.list_(entry)))


def min_json_characters(column: pa.Array) -> NDArray[np.int64]:
    """Returns a lower bound of the number of characters that each value has as JSON.

    It is found without making the values: every number, text and bracket has a character, and a
    character of a text has at most 4 bytes.

    Args:
        column: Array of R values of any type.
    """
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return min_json_characters(column.storage)
    if pa.types.is_dictionary(kind):
        entries_K = np.append(min_json_characters(column.dictionary), 1)  # null
        codes = column.indices.fill_null(len(column.dictionary))
        return entries_K[codes.to_numpy(zero_copy_only=False)]
    if is_text(kind):
        bytes_R = pc.binary_length(column.cast(mapped_type(kind, without_view))).fill_null(0)
        return 2 + bytes_R.to_numpy(zero_copy_only=False).astype(np.int64) // 4  # in quotes

    ones_R = np.ones(len(column), np.int64)
    if pa.types.is_struct(kind):
        return ones_R + sum(min_json_characters(field) for field in column.flatten())
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        return ones_R + pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
    if pa.types.is_fixed_size_list(kind):
        size, first = kind.list_size, column.offset
        inner = column.values.slice(first * size, len(column) * size)
        return ones_R + min_json_characters(inner).reshape(len(column), size).sum(1)
    if pa.types.is_map(kind):
        return ones_R + _sums(column, column.keys) + _sums(column, column.items)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return ones_R + _sums(column, column.values)
    return ones_R


def _sums(column: pa.Array, inner: pa.Array) -> NDArray[np.int64]:
    """Returns the sum of `min_json_characters` over the elements of each list or map."""
    offsets_R = column.offsets.to_numpy(zero_copy_only=False).astype(np.int64)
    if not (is_text(inner.type) or pa.types.is_nested(inner.type)):
        return np.diff(offsets_R)
    ends_K = np.concatenate([np.zeros(1, np.int64), np.cumsum(min_json_characters(inner))])
    return np.diff(ends_K[offsets_R])
