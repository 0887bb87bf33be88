"""The identity of a run: a folder that holds another run is refused, naming the difference."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from datarater.pipelines.errors import RunFolderMismatchError
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.layout import RunFolder, SelectionFolder, read_json_lines
from datarater.rater_model.documents.records import FileInfo

_NAMED_DIFFERENCES = 5


def differences(wanted: Any, found: Any, where: str = "") -> list[str]:
    """Names every field in which two JSON values differ, with both values."""
    if isinstance(wanted, Mapping) and isinstance(found, Mapping):
        lines = []
        for name in sorted(set(wanted) | set(found)):
            inner = f"{where}.{name}" if where else name
            lines += differences(wanted.get(name), found.get(name), inner)
        return lines
    if wanted == found:
        return []
    return [f"{where} is {found!r} there, but {wanted!r} now"]


def input_differences(wanted: Sequence[FileInfo], found: Sequence[FileInfo]) -> list[str]:
    """Names the input files that came, went or changed."""
    now, then = {file.path: file for file in wanted}, {file.path: file for file in found}
    lines = [f"{path} is new" for path in sorted(now.keys() - then.keys())]
    lines += [f"{path} is gone" for path in sorted(then.keys() - now.keys())]
    lines += [
        f"{path} has changed ({then[path].size} bytes then, {now[path].size} now)"
        for path in sorted(now.keys() & then.keys())
        if now[path] != then[path]
    ]
    if len(lines) > _NAMED_DIFFERENCES:
        lines[_NAMED_DIFFERENCES:] = [f"and {len(lines) - _NAMED_DIFFERENCES} more"]
    return lines


def read_identity(folder: RunFolder) -> dict[str, Any] | None:
    """The committed identity of a run folder, None where no plan was committed."""
    data = commits.read_if_there(folder.identity_path)
    return None if data is None else orjson.loads(data)


def check_identity(
    folder: RunFolder,
    committed: Mapping[str, Any],
    wanted: Mapping[str, Any],
    files: Sequence[FileInfo],
) -> None:
    """Refuses a run folder that belongs to another run.

    Args:
        folder: the run folder.
        committed: the identity that was read from it.
        wanted: the identity asked for now.
        files: the input files now.

    Raises:
        RunFolderMismatchError: naming what differs.
    """
    lines = differences(
        {name: value for name, value in wanted.items() if name != "inputs"},
        {name: value for name, value in committed.items() if name not in ("inputs", "plan")},
    )
    if wanted["inputs"] != committed["inputs"]:
        rows = read_json_lines(folder.inputs_path(committed["plan"]["id"]))
        lines += input_differences(files, [FileInfo.from_json(row) for row in rows])
    if lines:
        raise RunFolderMismatchError(
            f"{folder.path} holds another run: {'; '.join(lines)}. Take another output folder, or the same options"
        )


def check_rule(selection: SelectionFolder, wanted: Mapping[str, Any]) -> bool:
    """Refuses a selection's name under which another rule is kept.

    Returns:
        True if the very same rule is there already.

    Raises:
        RunFolderMismatchError: naming what differs.
    """
    data = commits.read_if_there(selection.rule_path)
    if data is None:
        return False
    lines = differences(wanted, orjson.loads(data))
    if lines:
        raise RunFolderMismatchError(
            f"{selection.path} holds another selection: {'; '.join(lines)}. Give this one a name of its own with --name"
        )
    return True
