"""Tokenizes and cuts a corpus once, in parallel, into the folder that `prepared` describes.

1. The sets are opened: each document has a set (`sets`), and the sets have ranks (`plan`).
2. The word sequences of held-out documents are collected, in parallel.
3. All documents are tokenized and compared with those sequences, in parallel, unit by unit
   (`tokenized_units`). What a unit comes to is committed to `FOLDER/work`, and a preparation that
   was killed continues after the last committed unit.
4. Documents that are near-duplicates of a held-out set leave the sets below it; the stream of each
   set is cut into windows, which are written in parallel (`shards`).
5. The index is written, then `FOLDER/work` is deleted.

Windows and their order depend neither on the number of processes nor on the units.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shutil
from pathlib import Path

from datarater.meta_training.data.plan import Plan, ranks_of
from datarater.meta_training.data.prepared import (
    FORMAT,
    INDEX,
    REFERENCE,
    TOKENIZER,
    Index,
    PreparedSet,
)
from datarater.meta_training.data.sets import INNER
from datarater.meta_training.data.shards import Stream, write_set
from datarater.meta_training.data.tokenized_units import (
    held_out_sequences,
    near_duplicates,
    tokenized_units,
)
from datarater.meta_training.data.worker_pool import WorkerPool
from datarater.rater_model.atomic_files import replace_file, write_json
from datarater.rater_model.json_codec import to_plain

_LOG = logging.getLogger("datarater")
WORK = "work"


def write_prepared(plan: Plan, folder: Path, pool: WorkerPool) -> Index:
    """Prepares the windows of all sets in a folder.

    Args:
        plan: What to prepare.
        folder: The folder; a preparation of the same plan that was killed in it is continued.
        pool: Worker processes.

    Raises:
        DataError: A set yields no window.
        OSError: A file cannot be read or written.
    """
    work = _begin_work(plan, folder)
    ranks = ranks_of(plan.sets)
    held_out = held_out_sequences(plan, ranks, pool) if plan.exclude_near_duplicates else None
    units = tokenized_units(plan, ranks, held_out, work, pool)

    left_out = near_duplicates(units, held_out)
    streams = {
        role: Stream.of(texts, number, units, left_out, plan)
        for number, (role, texts) in enumerate(plan.sets.items())
    }
    prepared = {
        role: write_set(plan, folder, plan.sets[role], stream, pool)
        for role, stream in streams.items()
    }
    _report_near_duplicates(prepared)

    texts = plan.sets[INNER]
    reference = dataclasses.replace(texts, member_N=streams[INNER].kept_N)
    write_json(folder / REFERENCE, reference.spread(plan.reference_documents))
    tokenizer = plan.tokenizer.serialise()
    replace_file(folder / TOKENIZER, tokenizer)
    index = Index(
        format=FORMAT,
        made_with=plan.made_with,
        data=plan.data,
        tokenizer=hashlib.sha256(tokenizer).hexdigest(),
        bytes_per_token=plan.dtype.itemsize,
        source_names={role: list(each.source.source_names) for role, each in plan.sets.items()},
        sets=prepared,
    )
    write_json(folder / INDEX, to_plain(index))
    shutil.rmtree(folder / WORK, ignore_errors=True)
    return index


def _begin_work(plan: Plan, folder: Path) -> Path:
    """Makes the folder of units; units of another plan are deleted."""
    (folder / INDEX).unlink(missing_ok=True)
    work, identity = folder / WORK / "units", plan.identity()
    record = folder / WORK / "plan.json"
    if not record.exists() or json.loads(record.read_bytes()) != identity:
        shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    write_json(record, identity)
    return work


def _report_near_duplicates(sets: dict[str, PreparedSet]) -> None:
    for role, each in sets.items():
        for number, why in (
            (each.in_other_sets, "which are in another set too"),
            (each.near_duplicates, "which are near-duplicates of another set"),
        ):
            if number:
                _LOG.info(
                    "excluded %s of %s %s documents, %s",
                    f"{number:,}",
                    f"{each.documents + each.in_other_sets + each.near_duplicates:,}",
                    role,
                    why,
                )
