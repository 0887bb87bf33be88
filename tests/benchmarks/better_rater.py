"""Which settings make a better rater? Successive halving over factors of the default config.

    python -m tests.benchmarks.better_rater prepare --output better     # needs DATARATER_CORPORA
    python -m tests.benchmarks.better_rater costs --output better
    python -m tests.benchmarks.better_rater weigh --rung 1 --settings a1 --output better
    python -m tests.benchmarks.better_rater screen --rung 1 --settings a1 --seeds 1 --output better
    python -m tests.benchmarks.better_rater agree --rung 1 --settings a1 --output better
    python -m tests.benchmarks.better_rater rung --rung 3 --settings a2 --output better
    python -m tests.benchmarks.better_rater show
    python -m tests.benchmarks.better_rater ceiling --output better

The settings are (a) and (b) of `tests.benchmarks.worth`, each cut by sources: settings are tuned on
a1 and b1, the pool of half of the sources, and reported on a2 and b2, the pool of the others. The
target of (a) is cut by source too; that of (b) is held out from its own half. a2d is a2 with folds
of the target that are alike.

A variant is the default config with one change. All variants of a rung train for the same number of
FLOPs, so a variant whose meta-steps cost more makes fewer of them; what comes before the first of
them (the warm-up pool, the start from a filter) is not counted. `costs` counts the FLOPs of a
meta-step of each variant; a core of a small server does about 30 GFLOP/s. `weigh` trains raters and
measures their scores as weights (`weighted_training`), with less chance than `rung`, which measures
what they keep. `screen` does so for 11 factors at once, by a design in which each effect is a
difference of two means of six raters. The test fold is not looked at until the new default is
frozen: rungs 1, 2, 5 and 6 do not store its losses.

What is finished is in `better_rater_results/`, a file for each setting and rung and one for the
costs. The same command continues from it, on another machine too; `evaluate` itself continues a
variant that was stopped.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import fcntl
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from datarater.meta_training.evaluate.statistics import interval_text, paired_difference
from datarater.rater_model.atomic_files import replacing
from tests.benchmarks.weighted_training import agreements, weighted_losses
from tests.benchmarks.worth import prepare_setting, run, write_held_out, write_records
from tests.support import corpora_folder

RESULTS = Path(__file__).parent / "better_rater_results"
RIVALS: tuple[str, ...] = ("bigram", "trigram", "word_bigram", "importance", "classifier")
UNIFORM, RANDOM = "uniform", "random"
DEFAULT = "default"
BASE = "length 128 + T 1 + outer 64"
"""The variant that others are compared with since T=1 was found to be enough."""

# Both halves have clean, mixed and noisy sources; the target's own sources are in their half.
FIRST_HALF = frozenset(
    (
        *("wikitext2_raw", "elife", "masc_edited", "brown", "reuters21578", "digitalgov"),
        *("movie_reviews", "latin_library", "newsgroups20", "web_cc", "wikitext_markup"),
        *("system_logs", "code_python", "gutenberg_tex"),
    )
)


class Variant(NamedTuple):
    """A change of the default config.

    Attributes:
        fields: Fields of the config with their values.
        flags: Further flags of `datarater evaluate`.
    """

    fields: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()


def _short_start(scores: str) -> Variant:
    """Returns the imitation of a filter's scores on fewer documents and in fewer updates."""
    return Variant((f"start.scores={scores}", "start.documents=4000", "start.steps=200"))


VARIANTS: dict[str, Variant] = {
    DEFAULT: Variant(),
    "length 128": Variant(("length=128",)),
    "length 1024": Variant(("length=1024", "inner_batch=8", "outer_batch=4")),
    "bpe 256": Variant(("tokenizer.kind=bpe", "tokenizer.vocabulary_size=2048")),
    "documents": Variant(("data.windows=document",)),
    "ages to 2000": Variant(("population.warmup_steps=2000",)),
    "4 initialisations": Variant(("population.warmup_trajectories=4",)),
    "inner 0.5M": Variant(
        ("inner_model.width=96", "inner_model.mlp_width=288", "inner_model.layers=4")
    ),
    "T 1": Variant(("inner_updates=1",)),
    "T 4": Variant(("inner_updates=4",)),
    "population 2": Variant(("population.size=2",)),
    "population 8": Variant(("population.size=8",)),
    "batch 16": Variant(("inner_batch=16",)),
    "batch 64": Variant(("inner_batch=64",)),
    "batch 128": Variant(("inner_batch=128",)),
    "warm-up batch 32": Variant(("population.warmup_batch=32",)),
    "outer 64": Variant(("outer_batch=64",)),
    "rate 3e-3": Variant(("meta_optimiser.learning_rate=3e-3",)),
    "rate 3e-2": Variant(("meta_optimiser.learning_rate=3e-2",)),
    "rate decays": Variant(("meta_optimiser.schedule=cosine",)),
    "clip 0.01": Variant(("meta_optimiser.clip_norm=0.01",)),
    "temperature 0.5": Variant(("softmax_temperature=0.5",)),
    "temperature 2": Variant(("softmax_temperature=2.0",)),
    "within source 0.5": Variant(("data.within_source_share=0.5",)),
    "within source 1": Variant(("data.within_source_share=1.0",)),
    "no n-grams": Variant(("rater.ngram_orders=()",)),
    "trigram table": Variant(("rater.ngram_orders=(2,3)", "rater.ngram_rows=32768")),
    "attention pooling": Variant(("rater.pooling=attention",)),
    "average 0.95": Variant(("rater_average.decay=0.95",)),
    "start classifier": _short_start("classifier"),
    "start trigram": _short_start("trigram"),
    "start both": _short_start("classifier,trigram"),
    "full start trigram": Variant(("start.scores=trigram",)),
}


def variant_of(name: str) -> Variant:
    """Returns the variant of a name; "A + B" has the changes of both.

    Raises:
        KeyError: A part is not the name of a variant.
    """
    parts = [VARIANTS[part] for part in name.split(" + ")]
    fields, flags = ([x for part in parts for x in part[i]] for i in (0, 1))
    return Variant(tuple(fields), tuple(flags))


FACTORS: tuple[str, ...] = (
    *("full start trigram", "trigram table", "attention pooling", "documents"),
    *("within source 0.5", "4 initialisations", "rate 3e-3", "rate decays", "clip 0.01"),
    *("temperature 0.5", "average 0.95"),
)
"""Those of `screen`. Each costs about as much FLOPs as the base, which others would not."""

# The first row of the design of 12 runs in Plackett and Burman, "The design of optimum
# multifactorial experiments" (Biometrika 33, 1946): the factors that are on.
FIRST_ROW = "++-+++---+-"


class Rung(NamedTuple):
    """One stage of the halving.

    Attributes:
        tflops: TFLOPs of its meta-training.
        first_seed: First of its seeds.
        seeds: Number of its seeds.
        rivals: Filters to compare with on a clean target. Rungs that have any look at the test
            fold.
        start: Whether raters are also evaluated as they were before their first meta-step.
        model: Size of the language models.
    """

    tflops: float
    first_seed: int
    seeds: int
    rivals: tuple[str, ...] = ()
    start: bool = False
    model: str = "0.14M"


# 3.75 TFLOPs are 61 meta-steps of "length 128 + T 1 + outer 64".
RUNGS = {
    1: Rung(3.75, 0, 2),
    2: Rung(7.5, 10, 3),
    3: Rung(7.5, 100, 4, ("random", "trigram", "classifier")),
    4: Rung(3.75, 100, 8, ("random", "trigram", "classifier")),
    # The curve from rung 1 on: 200 and 600 meta-steps.
    5: Rung(12.4, 0, 2),
    6: Rung(37.2, 0, 2),
    # The best rival of rung 4 alone, which halves the time.
    7: Rung(3.75, 200, 8, ("trigram",), start=True),
    # For a2d: seeds that no other setting has had, and larger language models on the first of them.
    8: Rung(3.75, 300, 8, ("trigram",), start=True),
    9: Rung(3.75, 300, 3, ("trigram",), model="1M"),
}


def prepare(output: Path, corpora: Path) -> None:
    """Cuts the corpora by sources, prepares each setting, and scores it with the rivals."""
    from datarater.meta_training.evaluate.pool import DataOptions
    from tests.benchmarks.benchmark_support import read_documents

    records = [record for _, record in read_documents(str(corpora / "dev" / "*"))]
    held_out = write_held_out(corpora, output / "sources")
    targets = [json.loads(line) for line in held_out.read_text(encoding="utf-8").splitlines()]

    for half in (1, 2):
        pool, target = (
            write_records(
                output / "sources" / f"{name}{half}.jsonl",
                (each for each in documents if (each["source"] in FIRST_HALF) == (half == 1)),
            )
            for name, documents in (("pool", records), ("target", targets))
        )
        clean = DataOptions((str(pool),), (str(target),), work_field="work")
        prepare_setting(output / f"a{half}", clean, RIVALS)
        prepare_setting(output / f"b{half}", DataOptions((str(pool),)), RIVALS)
    prepare_by_document(output)


def prepare_by_document(output: Path) -> None:
    """Prepares a2d: a2 with folds of one distribution.

    The target of a2 has two novels, so one of three folds has none, and a rater that learns from
    that fold is tested on three quarters of novels. Here each document of a novel is a work.
    """
    from datarater.meta_training.evaluate.pool import DataOptions

    lines = (output / "sources" / "target2.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    for number, record in enumerate(records):
        if record["source"] == "gutenberg":
            record["work"] += f", document {number}"
    target = write_records(output / "sources" / "target2d.jsonl", records)
    pool = output / "sources" / "pool2.jsonl"
    data = DataOptions((str(pool),), (str(target),), work_field="work")
    prepare_setting(output / "a2d", data, RIVALS)


def ceiling(output: Path, processes: int) -> None:
    """Shows how much an oracle gains that keeps the target's own sources, and lower shares too.

    All of (a) is used, since no rater is tuned here.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from datarater.meta_training.evaluate.pool import DataOptions
    from tests.benchmarks.benchmark_support import read_documents

    corpora, folder = corpora_folder(), output / "a"
    dev = str(corpora / "dev" / "*")
    held_out = write_held_out(corpora, output / "sources")
    targets = (json.loads(line) for line in held_out.read_text(encoding="utf-8").splitlines())
    own = {each["source"] for each in targets}
    prepare_setting(folder, DataOptions((dev,), (str(held_out),), work_field="work"), RIVALS)

    documents = [
        (each["id"], each["source"] in own, each["text"]) for _, each in read_documents(dev)
    ]
    ids, is_own, texts = zip(*documents, strict=True)
    scores = output / "sources" / "oracle.parquet"
    pq.write_table(pa.table({"id": ids, "score": pa.array(is_own, pa.float32())}), scores)
    sizes = [len(text.encode()) for text in texts]
    share = sum(size for size, mine in zip(sizes, is_own, strict=True) if mine) / sum(sizes)

    words = [f"oracle:{share:.2f}", f"classifier:{share:.2f}"]
    words += [f"{name}:{keep}" for name in ("classifier", "trigram") for keep in (0.25, 0.1, 0.05)]
    flags = ["--seeds=4", f"--scores=oracle={scores}", f"--arms={','.join(words)}"]
    report = run(folder, "ceiling", [*flags, f"--processes={processes}"])
    rows = [(f"{row['arm']} {row['keep']:g}", row) for row in report["arms"]]
    _store("ceiling", {name: row["choice_losses"] for name, row in rows})
    unfiltered = rows[0][1]
    for name, row in rows[1:]:
        difference = paired_difference(row["choice_losses"], unfiltered["choice_losses"])
        print(f"  {name:16} {interval_text(dataclasses.asdict(difference))}")


def screening_rows(base: str) -> dict[str, tuple[bool, ...]]:
    """Returns the variants of the screening design, with the factors that each has on.

    Rows are the cyclic shifts of the first one, and the base alone. Any two factors are on together
    in 3 of the 12 rows, so the effect of each is free of those of the others, as long as effects
    add up.
    """
    rows = {base: (False,) * len(FACTORS)}
    for shift in range(len(FACTORS)):
        on = tuple(sign == "+" for sign in FIRST_ROW[shift:] + FIRST_ROW[:shift])
        chosen = (factor for factor, is_on in zip(FACTORS, on, strict=True) if is_on)
        rows[" + ".join((base, *chosen))] = on
    return rows


def screen(output: Path, setting: str, number: int, base: str, seeds: int, processes: int) -> None:
    """Weighs the rows of the screening design, several at a time, and prints effects of factors."""
    rows = screening_rows(base)
    costs(output, list(rows))
    weigh(output, setting, number, (), seeds, processes)
    command = (sys.executable, "-m", "tests.benchmarks.better_rater", "weigh")
    flags = (f"--rung={number}", f"--settings={setting}", f"--seeds={seeds}", f"--output={output}")

    def weigh_row(name: str) -> None:
        subprocess.run([*command, *flags, f"--variants={name}"], check=True)

    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(weigh_row, rows))
    show_effects(setting, number, base)


def effects(
    on_RxF: NDArray[np.bool_], loss_R: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """Returns the effect of each factor on the loss, and the margin of 95% that they share.

    An effect is the mean loss of the rows that have the factor on less that of the others. With a
    factor for each degree of freedom nothing is left to estimate chance from, so the margin is
    Lenth's ("Quick and easy analysis of unreplicated factorials", Technometrics 31, 1989):
    t(0.975; m/3) times 1.5 median |effect|, of those of the m effects that are below 2.5 times a
    first such estimate from all, so that a few large ones do not count as chance.
    """
    effect_F = np.array([loss_R[on_R].mean() - loss_R[~on_R].mean() for on_R in on_RxF.T])
    size_F = np.abs(effect_F)
    small_F = size_F < 2.5 * 1.5 * np.median(size_F)
    error = 1.5 * np.median(size_F[small_F])
    return effect_F, float(scipy.stats.t.ppf(0.975, len(effect_F) / 3) * error)


def show_effects(setting: str, number: int, base: str) -> None:
    """Prints the effects of the screened factors, the most helpful first, if all rows have run."""
    rows = screening_rows(base)
    stored = _stored(f"{setting}_weights_rung{number}")
    missing = rows.keys() - stored.keys()
    if missing:
        if len(missing) < len(rows) - 1:  # the base alone is no screen
            print(f"\n{setting}, rung {number}: {len(missing)} rows of the screen are missing")
        return
    on_RxF = np.array(list(rows.values()))
    seeds = min(len(stored[name]["overall"]) for name in rows)
    print(f"\n{setting}, rung {number}: effects on the loss from {base}, seeds: {seeds}")
    for kind in ("overall", "within"):
        loss_R = np.array([np.mean(stored[name][kind][:seeds]) for name in rows])
        effect_F, margin = effects(on_RxF, loss_R)
        print(f"  {kind}, margin of 95%: {margin:.3f}")
        for factor, effect in sorted(zip(FACTORS, effect_F, strict=True), key=lambda row: row[1]):
            print(f"    {factor:24} {effect:+.3f}")


def _stored(name: str) -> dict[str, Any]:
    """Returns what a file of the results has; nothing if it is missing."""
    path = RESULTS / f"{name}.json"
    content: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return content


def _store(name: str, content: Mapping[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    with replacing(RESULTS / f"{name}.json") as new:
        new.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _add(name: str, key: str, content: object) -> dict[str, Any]:
    """Adds an entry to a file of the results, read again: other processes may have added theirs."""
    RESULTS.mkdir(exist_ok=True)
    folder = os.open(RESULTS, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        done = {**_stored(name), key: content}
        _store(name, done)
    finally:
        os.close(folder)
    return done


def costs(output: Path, names: Sequence[str]) -> dict[str, float]:
    """Counts the GFLOPs of a meta-step of each variant, and stores them."""
    known = _stored("costs")
    for name in names:
        if name not in known:
            known = _add("costs", name, round(_cost(output, variant_of(name)), 2))
            print(f"{name:20} {known[name]:7.1f} GFLOPs a meta-step", flush=True)
    return known


def _cost(output: Path, variant: Variant) -> float:
    """Returns the GFLOPs of a meta-step."""
    with tempfile.TemporaryDirectory() as workdir:
        subprocess.run(
            [
                *(sys.executable, "-m", "datarater", "train", f"--workdir={workdir}"),
                f"--config.data.inner={output / 'sources' / 'target1.jsonl'}",
                *short_flags(variant, 2),
            ],
            check=True,
            capture_output=True,
        )
        with open(Path(workdir) / "metrics" / "metrics.csv", encoding="utf-8") as file:
            flops = [float(row["flops"]) for row in csv.DictReader(file)]
    return (flops[1] - flops[0]) / 1e9


def short_flags(variant: Variant, steps: int) -> list[str]:
    """Returns the flags of a run of a few meta-steps that cost what the variant's do.

    What comes before the first meta-step is left out or short, and the learning rate does not warm
    up, so that it can decay over the few steps.
    """
    fields = ("meta_optimiser.warmup_steps=0", f"meta_steps={steps}", *variant.fields)
    before = ("start.", "population.warmup_")
    kept = (field for field in fields if not field.startswith(before))
    return [f"--config.{field}" for field in (*kept, "population.warmup_steps=1")]


def arms_of(setting: str, number: int, with_rivals: bool) -> list[str]:
    """Returns the flags that choose the rater's arm in a setting, its start's and its rivals'.

    Every arm is also run with the same share kept of each source. (a) keeps a quarter of the pool.
    (b) keeps half of it at first, where settings differ more, and nine tenths in the last rung,
    which is the share that harms least.
    """
    stage = RUNGS[number]
    reported = stage.rivals
    share, rivals = 0.25, reported or ("random",)
    if setting.startswith("b"):
        share, rivals = 0.9 if reported else 0.5, ("random",)
    start = ("start",) if stage.start else ()
    names = ("rater", *start, *(rivals if with_rivals else ()))
    flags = [f"--arms={','.join(f'{name}:{share}' for name in names)}", "--source_floor=1"]
    return [*flags, "--start_raters"] if stage.start else flags


def rung(output: Path, setting: str, number: int, names: Sequence[str], processes: int) -> None:
    """Trains and evaluates the variants of a rung; the evaluation of the first has rivals too."""
    stage = RUNGS[number]
    seeds = [f"--seeds={stage.seeds}", f"--first_seed={stage.first_seed}", f"--model={stage.model}"]
    kinds = ("choice_losses", "final_losses") if stage.rivals else ("choice_losses",)

    for name in names:
        done = _stored(f"{setting}_rung{number}")
        if name in done:
            continue
        variant, steps = variant_of(name), _meta_steps(output, number, name)
        fields = [f"--rater_config={field}" for field in (f"meta_steps={steps}", *variant.fields)]
        trained = ["--train_raters=default", *fields, *variant.flags]
        arms = arms_of(setting, number, with_rivals=name == names[0])

        report = run(
            output / setting,
            f"rung{number}_{name.replace(' ', '_')}",
            [*arms, *trained, *seeds, f"--processes={processes}"],
        )
        losses = {kind: {row["arm"]: row[kind] for row in report["arms"]} for kind in kinds}
        version = report["datarater"]
        _add(f"{setting}_rung{number}", name, {"version": version, "meta_steps": steps, **losses})


def weigh(
    output: Path,
    setting: str,
    number: int,
    names: Sequence[str],
    seeds: int,
    processes: int,
) -> None:
    """Trains the raters of a rung and measures their scores as weights; also those of rivals."""
    stage, kind = RUNGS[number], f"{setting}_weights_rung{number}"
    chosen = range(stage.first_seed, stage.first_seed + seeds)
    for name in dict.fromkeys((UNIFORM, RANDOM, *names)):
        done = _stored(kind)
        if name in done and len(done[name]["overall"]) >= seeds:
            continue
        of_rater = name not in (UNIFORM, RANDOM, *RIVALS)
        steps = _meta_steps(output, number, name) if of_rater else 0
        arm = "rater" if of_rater else name
        flags = _training_flags(name, steps) if of_rater else ("--config=default",)
        found = weighted_losses(output / setting, [arm], flags, chosen, processes)
        _add(kind, name, {"meta_steps": steps, **found[arm]} if of_rater else found[arm])
        show_weights(setting, number)


def agree(output: Path, setting: str, number: int, seeds: int) -> None:
    """Prints and stores how far the raters of a rung's seeds agree, and with two filters."""
    name_of_file = f"{setting}_agreement_rung{number}"
    stage, done = RUNGS[number], _stored(name_of_file)
    print(f"{setting}, rung {number}: correlation of normal scores")
    for name, each in _stored(f"{setting}_weights_rung{number}").items():
        if name in (UNIFORM, RANDOM, *RIVALS):
            continue
        done[name] = agreements(
            output / setting,
            _training_flags(name, each["meta_steps"]),
            range(stage.first_seed, stage.first_seed + seeds),
            ("classifier", "trigram"),
        )
        for kind, values in done[name].items():
            texts = "  ".join(f"{other} {value:.2f}" for other, value in values.items())
            print(f"  {name:56} {kind:8} {texts}", flush=True)
    _store(name_of_file, done)


def _meta_steps(output: Path, number: int, name: str) -> int:
    """Returns the meta-steps of a variant for the FLOPs of a rung."""
    return max(1, round(RUNGS[number].tflops * 1000 / costs(output, [name])[name]))


def _training_flags(name: str, steps: int) -> tuple[str, ...]:
    """Returns the flags of `datarater train` for a variant."""
    fields = (f"meta_steps={steps}", *variant_of(name).fields)
    return ("--config=default", *(f"--config.{field}" for field in fields))


def show_weights(setting: str, number: int) -> None:
    """Prints what each variant's and rival's scores are worth as weights, the best first.

    Unequal weights cost something whatever they are, as the random ones show: a batch then counts
    fewer windows. What scores are worth is the difference from those.
    """
    stored = _stored(f"{setting}_weights_rung{number}")
    for kind in ("overall", "within"):
        against = {"uniform": stored[UNIFORM]["overall"]}
        if RANDOM in stored:
            against[RANDOM] = stored[RANDOM][kind]
        print(f"\n{setting}, rung {number}: weights by score, {kind}, from {', '.join(against)}")
        rows = [(name, each[kind]) for name, each in stored.items() if name != UNIFORM]
        for name, losses in sorted(rows, key=lambda row: sum(row[1]) / len(row[1])):
            texts = [f"{_difference_text(losses, other):28}" for other in against.values()]
            print(f"  {name:56} {'  '.join(texts)}", flush=True)


def _difference_text(losses: Sequence[float], others: Sequence[float]) -> str:
    """Returns the paired difference over the seeds that both have, with its interval."""
    seeds = min(len(losses), len(others))
    if seeds == 1:
        return f"{losses[0] - others[0]:.4f} (1 seed)"
    difference = paired_difference(losses[:seeds], others[:seeds])
    return interval_text(dataclasses.asdict(difference))


def show(base: str) -> None:
    """Prints the results of all settings and rungs."""
    for setting in ("a1", "b1", "a2", "b2", "a2d"):
        for number in RUNGS:
            if _stored(f"{setting}_weights_rung{number}"):
                show_weights(setting, number)
                show_effects(setting, number, base)
            show_losses(setting, number, base)


def show_losses(setting: str, number: int, base: str) -> None:
    """Prints each variant's paired difference from the base, the best rival and no filter.

    A rung that did not run the base has the first variant that it ran in its place.
    """
    stored = _stored(f"{setting}_rung{number}")
    for kind in ("choice_losses", "final_losses"):
        losses = {name: each[kind] for name, each in stored.items() if kind in each}
        if not losses:
            continue

        for arm in ("rater", "rater_floored"):
            title = f"{RUNGS[number].tflops:g} TFLOPs, {kind.replace('_', ' ')}"
            print(f"\n{setting}, rung {number}, {arm}: {title}")
            _print_table(arm, losses, base if base in losses else next(iter(losses)))


def _print_table(arm: str, losses: Mapping[str, Mapping[str, list[float]]], base_name: str) -> None:
    """Prints the table of one setting and rung, the best variant first."""
    base = losses[base_name]
    others = {name: each for name, each in base.items() if not name.startswith("rater")}
    against = {base_name: base[arm], **others}
    print(f"  {'':36} {'loss':6}  " + "  ".join(f"from {name:23}" for name in against))

    for name, arms in sorted(losses.items(), key=lambda item: sum(item[1][arm])):
        texts = "  ".join(f"{_difference_text(arms[arm], other):28}" for other in against.values())
        print(f"  {name:36} {sum(arms[arm]) / len(arms[arm]):.4f}  {texts}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one step."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "step", choices=("prepare", "ceiling", "costs", "weigh", "screen", "agree", "rung", "show")
    )
    parser.add_argument("--output", type=Path, default=Path("better"), help="Working folder.")
    parser.add_argument("--rung", type=int, choices=RUNGS, default=1)
    parser.add_argument("--settings", default="a1,b1", help="Default: %(default)s.")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="Default: all.")
    parser.add_argument(
        "--base", default=BASE, help="Variant of show and screen. Default: %(default)s."
    )
    parser.add_argument(
        "--seeds", type=int, default=2, help="Of weigh and screen. Default: %(default)s."
    )
    parser.add_argument("--processes", type=int, default=1, help="Default: %(default)s.")
    args = parser.parse_args(argv)

    names = [name.strip() for name in args.variants.split(",")]
    if args.step == "prepare":
        prepare(args.output, corpora_folder())
    elif args.step == "ceiling":
        ceiling(args.output, args.processes)
    elif args.step == "costs":
        costs(args.output, names)
    elif args.step == "weigh":
        for setting in args.settings.split(","):
            weigh(args.output, setting, args.rung, names, args.seeds, args.processes)
    elif args.step == "screen":
        for setting in args.settings.split(","):
            screen(args.output, setting, args.rung, args.base, args.seeds, args.processes)
    elif args.step == "agree":
        for setting in args.settings.split(","):
            agree(args.output, setting, args.rung, args.seeds)
    elif args.step == "rung":
        for setting in args.settings.split(","):
            rung(args.output, setting, args.rung, names, args.processes)
    else:
        show(args.base)
    return 0


if __name__ == "__main__":
    sys.exit(main())
