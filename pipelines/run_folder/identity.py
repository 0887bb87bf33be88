"""The identity of a run: a folder of another run is refused with a list of the differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from datarater.pipelines.errors import RunFolderMismatchError
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.layout import RunFolder, SelectionFolder, read_json_lines
from datarater.rater_model.documents.records import FileInfo

_MAX_DIFFERENCES = 5


def differences(requested: Any, committed: Any, where: str = "") -> list[str]:
    """Describes every field in which two JSON values differ, with both values.

    Args:
        requested: JSON value of the requested run.
        committed: JSON value that was committed before.
        where: Name of the field that both are values of.
    """
    if isinstance(requested, Mapping) and isinstance(committed, Mapping):
        lines = []
        for name in sorted(set(requested) | set(committed)):
            inner = f"{where}.{name}" if where else name
            lines += differences(requested.get(name), committed.get(name), inner)
        return lines
    if requested == committed:
        return []
    return [f"{where} is {committed!r} there, but {requested!r} now"]


def input_differences(present: Sequence[FileInfo], planned: Sequence[FileInfo]) -> list[str]:
    """Describes the input files that were added, removed or changed since the plan was made."""
    now, then = {file.path: file for file in present}, {file.path: file for file in planned}

    lines = [f"{path} is new" for path in sorted(now.keys() - then.keys())]
    lines += [f"{path} is gone" for path in sorted(then.keys() - now.keys())]
    lines += [
        f"{path} has changed ({then[path].size} bytes then, {now[path].size} now)"
        for path in sorted(now.keys() & then.keys())
        if now[path] != then[path]
    ]

    if len(lines) > _MAX_DIFFERENCES:
        lines[_MAX_DIFFERENCES:] = [f"and {len(lines) - _MAX_DIFFERENCES} more"]
    return lines


def read_identity(folder: RunFolder) -> dict[str, Any] | None:
    """Reads the committed identity of a run folder; None if no plan is committed."""
    data = commits.read_if_there(folder.identity_path)
    return None if data is None else orjson.loads(data)


def check_identity(
    folder: RunFolder,
    committed: Mapping[str, Any],
    requested: Mapping[str, Any],
    files: Sequence[FileInfo],
) -> None:
    """Refuses a run folder that belongs to another run.

    Args:
        folder: Run folder.
        committed: Identity that was read from it.
        requested: Identity of the requested run.
        files: Input files as they are now.

    Raises:
        RunFolderMismatchError: The identities differ; the message names the differences.
    """
    lines = differences(
        {name: value for name, value in requested.items() if name != "inputs"},
        {name: value for name, value in committed.items() if name not in ("inputs", "plan")},
    )
    if requested["inputs"] != committed["inputs"]:
        rows = read_json_lines(folder.inputs_path(committed["plan"]["id"]))
        lines += input_differences(files, [FileInfo.from_json(row) for row in rows])
    if lines:
        raise RunFolderMismatchError(
            f"{folder.path} belongs to another run: {'; '.join(lines)}. Use another output "
            "folder, or the same options"
        )


def check_rule(selection: SelectionFolder, requested: Mapping[str, Any]) -> bool:
    """Refuses a selection whose name is taken by another rule.

    Returns:
        Whether the same rule is committed already.

    Raises:
        RunFolderMismatchError: The rules differ; the message names the differences.
    """
    data = commits.read_if_there(selection.rule_path)
    if data is None:
        return False
    lines = differences(requested, orjson.loads(data))
    if lines:
        raise RunFolderMismatchError(
            f"{selection.path} is another selection: {'; '.join(lines)}. Give this one another "
            "name with --name"
        )
    return True
