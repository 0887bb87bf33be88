"""The prepared data of a run: made on first use, found again on resuming, refused when stale."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from datarater.meta_training.config import build
from datarater.meta_training.config.outer_sets import outer_patterns
from datarater.meta_training.configs import default
from datarater.meta_training.data.cutting import CutOptions
from datarater.meta_training.data.plan import Plan
from datarater.meta_training.data.prepare import WORK, write_prepared
from datarater.meta_training.data.prepared import (
    INDEX,
    REFERENCE,
    TOKENIZER,
    Index,
    read_index,
)
from datarater.meta_training.data.sets import INNER, OUTER, SetNames, TextSet, open_sets
from datarater.meta_training.data.texts import DataError, current_fingerprint, open_source
from datarater.meta_training.data.worker_pool import WorkerPool
from datarater.meta_training.errors import WorkdirError
from datarater.meta_training.run.start_models import RATER, Models
from datarater.meta_training.run.start_rater import (
    check_fits,
    start_checkpoint,
    start_tokenizer,
)
from datarater.rater_model.atomic_files import write_json
from datarater.rater_model.json_codec import DecodingError, decode, to_plain
from datarater.rater_model.tokenizer import (
    ByteTokenizer,
    Tokenizer,
    load_tokenizer,
    train_bpe,
)

_LOG = logging.getLogger("datarater")

OTHER_DATA = (
    "{} has a run on other data: the files or datasets of data.inner, data.outer, data.questions, "
    "data.validation or data.test have changed since it began, or others are named now, or the "
    "folder of data.prepared was prepared in another way. Restore them, or give another --workdir"
)


def set_names(config: ConfigDict) -> SetNames:
    """Returns what the sets of a run are made of."""
    data = config.data
    return SetNames(
        inner=data.inner,
        outer=outer_patterns(data.outer),
        outer_share=data.outer_share,
        validation=data.validation,
        validation_share=data.validation_share,
        test=data.test,
        test_share=data.test_share,
    )


def made_with(config: ConfigDict) -> dict[str, Any]:
    """Returns the fields that decide which windows there are, beside the texts."""
    names, data = set_names(config), config.data
    fields: dict[str, Any] = {
        "length": config.length,
        "data.windows": data.windows,
        "data.text_field": data.text_field,
        "data.source_field": data.source_field,
        "data.exclude_near_duplicates": data.exclude_near_duplicates,
        "data.within_source_share": data.within_source_share > 0,
        "tokenizer.kind": config.tokenizer.kind,
    }
    if data.windows == "document":
        fields["data.minimum_length"] = data.minimum_length
    if config.tokenizer.kind != ByteTokenizer.kind:
        fields["tokenizer.vocabulary_size"] = config.tokenizer.vocabulary_size
        fields["tokenizer.training_documents"] = config.tokenizer.training_documents
    return fields | {f"data.{role}_share": share for role, share in names.shares().items()}


def prepare_in_workdir(
    config: ConfigDict,
    folder: Path,
    tokenizer: bytes | None,
    begun: bool,
    models: Models | None = None,
) -> None:
    """Prepares the data of a run in its workdir, unless they are there.

    Args:
        config: The whole config.
        folder: The workdir's folder of prepared data.
        tokenizer: Serialized tokenizer of the run, if it has begun.
        begun: Whether the run has begun, and so must continue on the same data.
        models: Models of Hugging Face that the run starts from.

    Raises:
        ConfigError: The run cannot start from the rater of `start.rater`.
        DataError: The data cannot be used.
        NoInputError: No file matches.
        WorkdirError: The run has begun on other data.
        OSError: A file cannot be read or written.
    """
    index = read_index(folder)
    if index is not None:
        reason = difference(config, index) or changed_source(config, index, folder)
        if not reason:
            return
        if begun:
            raise WorkdirError(OTHER_DATA.format(folder.parent) + f" ({reason})")
        _LOG.info("preparing the data again: %s", reason)
    prepare(config, folder, tokenizer, models=models)


def prepare(
    config: ConfigDict,
    folder: Path,
    tokenizer: bytes | None = None,
    processes: int | None = None,
    models: Models | None = None,
) -> Index:
    """Prepares the data of a config in a folder.

    Args:
        config: The whole config.
        folder: The folder; what a killed preparation left in it is continued.
        tokenizer: Serialized tokenizer; without it, that of the rater to start from is taken over,
            or a BPE is trained.
        processes: Number of worker processes; None for one per core.
        models: Models of Hugging Face that the run starts from.

    Raises:
        ConfigError: The run cannot start from the rater of `start.rater`.
        DataError: The data cannot be used.
        NoInputError: No file matches.
        OSError: A file cannot be read or written.
    """
    data, names = config.data, set_names(config)
    if processes is None:
        processes = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1

    with WorkerPool(processes) as pool:
        folder.mkdir(parents=True, exist_ok=True)
        sets = open_sets(
            names,
            data.text_field,
            data.tfds_data_dir,
            data.source_field,
            pool,
            str(folder / WORK / "texts"),
        )
        made_tokenizer = choose_tokenizer(config, sets[INNER], tokenizer, models or {})
        plan = Plan(
            sets=sets,
            tokenizer=made_tokenizer,
            cutting=CutOptions(
                length=config.length,
                mode=data.windows,
                minimum_length=data.minimum_length,
                within_sources=data.within_source_share > 0,
            ),
            exclude_near_duplicates=data.exclude_near_duplicates,
            reference_documents=config.export.reference_documents,
            made_with=made_with(config),
            data=_identity(sets, data.within_source_share > 0),
        )
        return write_prepared(plan, folder, pool)


def _identity(sets: dict[str, TextSet], with_sources: bool) -> str:
    """Returns the digest of the texts, and of the inner set's sources if batches depend on them."""
    inner = sets[INNER].source
    held_out = [texts for role, texts in sets.items() if role != INNER]
    identities = [
        inner.identity,
        *(
            texts.source.identity
            for texts in held_out
            if texts.source is not inner or texts.role == OUTER
        ),
    ]
    digest = hashlib.sha256("\n".join(identities).encode())
    if with_sources and inner.source_N is not None:
        digest.update(inner.source_N.tobytes())
    return digest.hexdigest()


def choose_tokenizer(
    config: ConfigDict, inner: TextSet, serialized: bytes | None, models: Models
) -> Tokenizer:
    """Returns the tokenizer of a run.

    Args:
        config: The whole config.
        inner: The inner set.
        serialized: Tokenizer of a run that is resumed; without it, that of the models or the rater
            to start from is taken over, or a BPE is trained.
        models: Models of Hugging Face that the run starts from.

    Raises:
        ConfigError: The run cannot start from the rater of `start.rater`.
    """
    if serialized:
        return load_tokenizer(config.tokenizer.kind, serialized)
    start = None if RATER in models else start_checkpoint(config)
    if models:
        tokenizer: Tokenizer = next(iter(models.values())).tokenizer
    elif start:
        tokenizer = start_tokenizer(config, start)
    else:
        tokenizer = make_tokenizer(config, inner)
    if start:
        check_fits(start, build.rater_config(config, tokenizer), tokenizer)  # before any work
    return tokenizer


def make_tokenizer(config: ConfigDict, inner: TextSet) -> Tokenizer:
    """Returns the tokenizer of a config; a BPE is trained on documents from all over the set."""
    if config.tokenizer.kind == ByteTokenizer.kind:
        return ByteTokenizer()

    sample = inner.spread(config.tokenizer.training_documents)
    tokenizer = train_bpe(sample, config.tokenizer.vocabulary_size)
    _LOG.info(
        "trained a BPE of %s ids on %s documents",
        f"{tokenizer.vocabulary_size:,}",
        f"{len(sample):,}",
    )
    return tokenizer


def difference(config: ConfigDict, index: Index) -> str:
    """Returns how a config differs from what a folder was prepared with; "" if it does not.

    Without `data.inner`, fields of the sets count only if they do not have their defaults.
    """
    wanted, had = made_with(config), index.made_with
    if not config.data.inner:
        usual = made_with(default.get_config())
        shares = [field for field in {*wanted, *had} if field.endswith("_share")]
        for field in shares:
            if field != "data.within_source_share" and wanted.get(field) == usual.get(field):
                wanted.pop(field, None)
                had = {name: value for name, value in had.items() if name != field}
    return "; ".join(
        f"it was prepared with {field} {had.get(field)!r}, now it is {wanted.get(field)!r}"
        for field in sorted({*wanted, *had})
        if wanted.get(field) != had.get(field)
    )


def changed_source(config: ConfigDict, index: Index, folder: Path | None = None) -> str:
    """Returns how the sources differ from those that a folder was prepared from; "" if not at all.

    Files that look as they did then (names, sizes and times) are not read. Others are: a copied or
    touched file of the same content is the same.

    Args:
        config: The whole config; its sources are compared.
        index: Index of the folder.
        folder: Where to write the index with how the files look now; None to leave it.
    """
    names, data = set_names(config), config.data
    sources = {role: names.source_of(role) for role in names.roles()}
    if {*sources} != {*index.sets}:
        return f"it has the sets {', '.join(index.sets)}, now they are {', '.join(sources)}"

    seen: dict[str, tuple[str, str | None]] = {}
    sets = dict(index.sets)
    for role, name in sources.items():
        before = index.sets[role]
        if name not in seen:
            fingerprint = current_fingerprint(name, data.text_field, data.tfds_data_dir)
            identity = None
            if fingerprint != before.fingerprint:
                _LOG.info("reading %s, since its files look different", name)
                source = open_source(name, data.text_field, data.tfds_data_dir, data.source_field)
                identity = source.identity
            seen[name] = fingerprint, identity
        fingerprint, identity = seen[name]
        if fingerprint != before.fingerprint:
            if identity != before.identity:
                return f"the texts of the {role} set's source have changed"
            sets[role] = dataclasses.replace(before, fingerprint=fingerprint)
    if folder and sets != index.sets:
        write_json(folder / INDEX, to_plain(dataclasses.replace(index, sets=sets)))
    return ""


def check_given(config: ConfigDict, folder: Path) -> Index:
    """Checks that the folder of `data.prepared` has what a config asks for.

    Raises:
        DataError: It has not; the message says how to go on.
    """
    index = read_index(folder)
    if index is None:
        raise DataError(
            f"data.prepared: {folder} has no {INDEX}; make it with datarater prepare --output "
            f"{folder}"
        )
    reason = difference(config, index)
    if not reason and config.data.inner:
        reason = changed_source(config, index)
    if reason:
        raise DataError(
            f"data.prepared: {folder} does not fit the config: {reason}. Give the config that it "
            "was prepared with, prepare another folder, or leave data.inner empty to take what is "
            "in it"
        )

    kept, wanted = len(read_reference(folder)), config.export.reference_documents
    if kept < min(wanted, index.sets[INNER].documents):
        raise DataError(
            f"data.prepared: {folder} keeps {kept} reference documents, fewer than "
            f"export.reference_documents={wanted}: lower that, or prepare another folder with it"
        )
    return index


def read_reference(folder: Path) -> list[str]:
    """Returns the inner documents on which exported scores are centered.

    Raises:
        DataError: The file is damaged.
        OSError: It cannot be read.
    """
    path = folder / REFERENCE
    try:
        return decode(list[str], path.read_bytes())
    except DecodingError as error:
        raise DataError(
            f"{path} is damaged ({error}); delete {folder} and prepare again"
        ) from error


def read_tokenizer(config: ConfigDict, folder: Path, index: Index) -> Tokenizer:
    """Returns the tokenizer of a folder.

    Raises:
        DataError: It is not the one that the folder was prepared with.
    """
    serialized = (folder / TOKENIZER).read_bytes()
    if hashlib.sha256(serialized).hexdigest() != index.tokenizer:
        raise DataError(
            f"{folder / TOKENIZER} is not the tokenizer that the folder was prepared with; "
            "prepare it again"
        )
    return load_tokenizer(config.tokenizer.kind, serialized)
