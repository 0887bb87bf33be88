"""Clears a run folder in which no document could be scored, so that it can be planned anew.

Such a run is the result of a wrong option or input. Its folder has nothing of worth, and would
refuse the corrected command as another run.
"""

from __future__ import annotations

import orjson

from datarater.pipelines.run_folder import commits, summaries
from datarater.pipelines.run_folder.identity import read_identity
from datarater.pipelines.run_folder.layout import RunFolder
from datarater.pipelines.run_folder.lease import Launch, Lease
from datarater.pipelines.run_folder.scored import count_plans, find_scoring


def nothing_was_scored(folder: RunFolder) -> bool:
    """Returns whether all splits of a run are done and none has a document with a score."""
    scoring = find_scoring(folder)
    if scoring is not None:
        return not scoring.counts.scored
    identity = read_identity(folder)
    if identity is None:
        return False
    groups = summaries.summarised_groups(folder)
    return len(groups) == identity.plan.groups and not any(
        summaries.read_summary(folder, group).counts.scored for group in groups
    )


def clear(folder: RunFolder) -> None:
    """Removes the plan of a run in which nothing was scored, and all that follows from it.

    Raises:
        LeaseHeldError: Another launch is working in the folder.
    """
    launch = Launch.new("a new plan", local=True)
    with Lease([folder.scoring_lease_path], launch, lambda error: None):
        if not nothing_was_scored(folder):
            return  # another launch has begun the new run
        # The identity goes last: whatever is left by then belongs to no plan.
        for path in (f"{folder.path}/selections", f"{folder.path}/scores", folder.rejected_folder):
            _remove_below(path)
        plans = range(count_plans(folder))
        for plan in plans:
            commits.remove(folder.scoring_path_of(plan))
        _remove_below(folder.summaries_path)
        for plan in reversed(plans):
            commits.remove(folder.identity_path_of(plan))


def _remove_below(path: str) -> None:
    """Removes all files below a folder."""
    for name in commits.list_subfolders(path):
        _remove_below(f"{path}/{name}")
    for entry in commits.list_folder(path):
        commits.remove(entry.path)


def first_reject(folder: RunFolder) -> str:
    """Describes the first rejected record of a run, for a message; "" if there is none."""
    for entry in commits.list_folder(folder.rejected_folder)[:1]:
        with commits.open_committed(entry.path) as file:
            row = orjson.loads(file.readline())
        return f"{row['file']} at {row['position']}: {row['detail']}"
    return ""
