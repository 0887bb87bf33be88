"""Which input files were only touched: their times differ, and their scored content does not."""

from __future__ import annotations

from collections.abc import Mapping

from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.plan import CommittedPlans
from datarater.pipelines.run_folder.score_files import ScoreFile
from datarater.rater_model.documents.content import content_digest
from datarater.rater_model.documents.records import FileInfo


def modified(plans: CommittedPlans, touched: Mapping[str, FileInfo]) -> set[str]:
    """Returns the paths of those files whose content is not the one that was scored.

    The stored bytes of each scored split are compared with the digest in its score file. A split
    that is not scored yet is read as it is now.

    Args:
        plans: Plans of the run folder.
        touched: Files whose time of modification alone differs from the plan, by path.
    """
    found: set[str] = set()
    for group in range(plans.groups if touched else 0):
        for task in plans.read_group(group):
            if not any(part.split.path in touched for part in task.each()):
                continue
            path = plans.folder.score_path(task.split.ordinal)
            if commits.exists(path):
                file = ScoreFile.read(plans.folder, task.split.ordinal, columns=[])
                found |= {
                    part.task.split.path
                    for part in file.sections()
                    if part.task.split.path in touched and not _is_same(part, touched)
                }
    return found


def _is_same(part: ScoreFile, touched: Mapping[str, FileInfo]) -> bool:
    split = part.task.split
    try:
        now = content_digest(split, touched[split.path].fingerprint)
    except OSError:
        return False
    return now != "" and now == part.content
