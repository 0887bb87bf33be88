from __future__ import annotations

import dataclasses
import errno
import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datarater.meta_training.demo import demo
from datarater.meta_training.demo.corpus import DemoCorpus, Kind
from datarater.meta_training.demo.demo import clear_previous, run_command, take_rater
from datarater.meta_training.demo.errors import CommandError, DemoError, NotOurFolderError
from datarater.meta_training.demo.results import (
    KindResult,
    measure,
    print_table,
    read_kept,
    read_pool,
    read_scores,
    sample_by_kind,
    score_with,
)
from datarater.meta_training.evaluate.command import evaluation_of, make_parser
from datarater.rater_model import exit_codes
from datarater.rater_model.checkpoint import RaterCheckpoint, save_rater
from datarater.rater_model.rater import RaterConfig, initialise_rater
from datarater.rater_model.tokenizer import ByteTokenizer
from datarater.rater_model.transformer import TransformerConfig
from tests.support import ROOT


def documents(per_kind: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{kind}-{i}",
            "text": f"A text of kind {kind}, number {i}.",
            "source": "topics",
            "kind": kind.value,
        }
        for i in range(per_kind)
        for kind in Kind
    ]


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = b"".join(json.dumps(record).encode() + b"\n" for record in records)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_rater(path: Path) -> None:
    config = RaterConfig(
        window=64,
        transformer=TransformerConfig(width=8, heads=1, mlp_width=8, layers=1),
        ngram_rows=16,
    )
    save_rater(
        path, RaterCheckpoint(config, initialise_rater(config, jax.random.key(0)), ByteTokenizer())
    )


def test_the_table_counts_and_ranks_by_kind() -> None:
    pool = documents(4)
    # Intact prose and code score highest, except that half of the boilerplate scores above them.
    trained = {
        d["id"]: {"intact": 2.0, "code": 2.0, "shuffled": -1.0, "redrawn": -1.0}.get(
            d["kind"], 3.0 if d["id"].endswith(("-0", "-1")) else 0.0
        )
        for d in pool
    }
    # The sample contains the two documents of boilerplate above the intact ones; the pool also has
    # those below.
    untrained = {d["id"]: 0.0 for d in pool if d["id"].endswith(("-0", "-1"))}
    kept = {d["id"] for d in pool if trained[d["id"]] > 1}

    results = measure(pool, untrained, trained, kept)
    assert results["intact"] == KindResult(4, 4, None, None, None)
    assert results["shuffled"] == KindResult(4, 0, 0.5, 1.0, 1.0)
    assert results["boilerplate"] == KindResult(4, 2, 0.5, 0.0, 0.5)
    assert results["code"] == KindResult(4, 4, 0.5, 0.5, 0.5)
    assert results["damaged"].documents == 12
    assert results["damaged"].trained_auc_all == pytest.approx((1 + 1 + 0.5) / 3)
    assert results["boilerplate"].kept_share == 0.5


def test_a_document_without_a_score_is_named() -> None:
    pool = documents(2)
    trained = {d["id"]: 0.0 for d in pool if d["id"] != "shuffled-1"}
    with pytest.raises(DemoError, match=r"1 of the pool's 10 documents .*shuffled-1"):
        measure(pool, {}, trained, set())


def test_the_sample_has_equal_numbers_and_is_always_the_same() -> None:
    pool = [*documents(9), {"id": "rare", "text": "x", "source": "", "kind": "rare"}]
    sample = sample_by_kind(pool, 3)
    counts = {kind: sum(d["kind"] == kind for d in sample) for kind in {d["kind"] for d in pool}}
    assert counts == {**{kind.value: 3 for kind in Kind}, "rare": 1}
    assert sample_by_kind(pool, 3) == sample


def test_a_run_folder_is_read(tmp_path: Path) -> None:
    pool = documents(2)
    write_jsonl(tmp_path / "corpus" / "corpus-00000-of-00001.jsonl.gz", pool)
    assert read_pool(tmp_path) == pool
    scores = tmp_path / "curated" / "scores" / "a7"
    scores.mkdir(parents=True)
    status = pa.array(["scored", "scored", "no_text"]).dictionary_encode()
    table = {
        "key": ['"a"', "7", None],
        "score": pa.array([1.5, -2.0, None], pa.float32()),
        "status": status,
    }
    pq.write_table(pa.table(table), scores / "00000000.parquet")
    pq.write_table(pa.table({"splits": [1]}), tmp_path / "curated" / "scores" / "summary.parquet")
    assert read_scores(tmp_path / "curated") == {"a": 1.5, "7": -2.0}

    selections = tmp_path / "curated" / "selections"
    write_jsonl(selections / "keep-0.5" / "kept" / "part-00000-of-00002.jsonl.gz", [{"id": "a"}])
    write_jsonl(selections / "keep-0.5" / "kept" / "part-00001-of-00002.jsonl", [{"id": 7}])
    with pytest.raises(DemoError, match="0 finished selections"):
        read_kept(tmp_path / "curated")
    (selections / "keep-0.5" / "_SUCCESS").touch()
    assert read_kept(tmp_path / "curated") == {"a", "7"}


def test_both_raters_score_the_same_documents(tmp_path: Path) -> None:
    pool = documents(2)
    write_rater(tmp_path / "train" / "rater")
    take_rater(tmp_path)
    scores = score_with(tmp_path / "rater", pool)
    assert set(scores) == {d["id"] for d in pool}
    assert score_with(tmp_path / "train" / "rater", pool[::-1]) == scores
    (tmp_path / "rater" / "params.safetensors").write_bytes(b"broken")
    with pytest.raises(DemoError, match="cannot be loaded"):
        score_with(tmp_path / "rater", pool)


def test_training_without_a_rater_is_said(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match="without a rater checkpoint"):
        take_rater(tmp_path)


def test_an_earlier_demo_is_cleared_except_its_corpus(tmp_path: Path) -> None:
    output = tmp_path / "demo_output"
    clear_previous(output)
    for name in ("train", "curated", "corpus"):
        (output / name).mkdir()
        (output / name / "file").touch()
    clear_previous(output)
    assert sorted(path.name for path in output.iterdir()) == [".datarater-demo", "corpus"]


def test_what_no_demo_made_is_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "train" / "precious"
    precious.parent.mkdir()
    precious.touch()
    with pytest.raises(NotOurFolderError, match="not made by the demo"):
        clear_previous(tmp_path)
    assert precious.exists()
    marked = tmp_path / "marked"
    clear_previous(marked)
    (marked / "rater").symlink_to(tmp_path / "train")
    with pytest.raises(NotOurFolderError, match="not a folder that the demo made"):
        clear_previous(marked)
    assert precious.exists()


def test_commands_are_echoed_as_typed_and_a_failure_names_the_step(
    capfd: pytest.CaptureFixture[str],
) -> None:
    python = (sys.executable, "-c")
    assert run_command("greeting", ["print('hello there')"], python) > 0
    assert (
        capfd.readouterr().out == "\n$ datarater 'print('\"'\"'hello there'\"'\"')'\nhello there\n"
    )
    with pytest.raises(CommandError, match=r"curation failed: .* ended with exit code 3"):
        run_command("curation", ["raise SystemExit(3)"], python)
    with pytest.raises(CommandError, match="killed by signal 9"):
        run_command("curation", ["import os; os.kill(os.getpid(), 9)"], python)


@pytest.mark.parametrize(
    ("ending", "passed_on"),
    [(73, exit_codes.DISK_FULL), (75, exit_codes.STOPPED), (99, exit_codes.FAILED)],
)
def test_a_known_exit_code_of_a_command_is_passed_on(ending: int, passed_on: int) -> None:
    with pytest.raises(CommandError) as failed:
        run_command("curation", [f"raise SystemExit({ending})"], (sys.executable, "-c"))
    assert failed.value.exit_code == passed_on


def test_the_commands_name_the_files_of_the_output_folder(tmp_path: Path) -> None:
    corpus = DemoCorpus(tmp_path, {}, made=True)
    train, curate = demo.train_command(corpus), demo.curate_command(corpus)
    assert train[:2] == ["train", "--config=demo"]
    assert f"--workdir={tmp_path / 'train'}" in train
    learned_from = tmp_path / "evaluation" / "target" / "0" / "learning.jsonl.gz"
    assert f"--config.data.outer={learned_from}" in train
    assert curate[0] == "curate"
    assert f"--rater={tmp_path / 'rater'}" in curate
    assert "--keep_fraction=0.5" in curate


def test_the_rater_is_evaluated_in_the_folder_of_the_random_half(tmp_path: Path) -> None:
    corpus = DemoCorpus(tmp_path, {}, made=True)
    first, last = (
        make_parser().parse_args(demo.evaluate_command(corpus, with_rater)[1:])
        for with_rater in (False, True)
    )
    random_half, rated = evaluation_of(first), evaluation_of(last)
    assert random_half.arms.names == ("unfiltered", "random")
    assert rated.arms.names == ("unfiltered", "random", "rated")
    assert rated.arms.scores == {"rated": (str(tmp_path / "curated" / "scores"),)}
    # Otherwise the runs of the first evaluation would not serve the last.
    assert dataclasses.replace(rated, arms=random_half.arms) == random_half
    assert rated.seeds == 4


def test_commands_are_started_by_the_running_python() -> None:
    assert (sys.executable, "-m", "datarater") == demo.PROGRAM


def test_the_table_is_printed_whole_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pool = documents(3)
    scores = {d["id"]: float(d["kind"] == "intact") for d in pool}
    print_table(measure(pool, scores, scores, {d["id"] for d in pool if d["kind"] == "intact"}))
    printed = capsys.readouterr().out
    for expected in ("intact prose", "all damaged", "source code", "1.000", "100.0%"):
        assert expected in printed
    assert "…" not in printed


def test_the_end_says_where_things_are_and_what_next() -> None:
    output = Path("my output")
    words = demo.closing_words(output, 3, {"train": 2.0, "all": 3.0})
    assert "3 s in all (train 2 s)" in words
    for name in ("corpus", "heldout", "train", "rater", "curated", "evaluation", "demo.json"):
        assert f"my output/{name}" in words
    assert "datarater select '--output=my output/curated' --keep_fraction=0.2" in words
    assert "'--rater=my output/rater'" in words


def test_wrong_usage_and_failures_have_their_exit_codes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as usage:
        demo.main(["--documents_per_kind", "0"])
    assert usage.value.code == exit_codes.WRONG_USAGE
    assert capsys.readouterr().err.count("\n") == 1
    (tmp_path / "train").mkdir()
    assert demo.main(["--output", str(tmp_path)]) == exit_codes.OTHER_RUN
    assert "datarater demo: " in capsys.readouterr().err

    def ends_with(error: BaseException) -> int:
        def run(output: Path, per_kind: int) -> None:
            raise error

        return demo.main(["--output", str(tmp_path)], run)

    assert ends_with(DemoError("no")) == exit_codes.FAILED
    assert ends_with(CommandError("no", exit_codes.DISK_FULL)) == exit_codes.DISK_FULL
    assert ends_with(OSError(errno.ENOSPC, "no space")) == exit_codes.DISK_FULL
    assert ends_with(PermissionError(errno.EACCES, "no")) == exit_codes.NO_PERMISSION
    assert ends_with(OSError("no")) == exit_codes.FAILED
    assert ends_with(KeyboardInterrupt()) == exit_codes.STOPPED
    assert "run the same command to start over" in capsys.readouterr().err


def test_without_the_extra_nothing_is_made(tmp_path: Path) -> None:
    arguments = [f"--output={tmp_path / 'output'}"]
    with pytest.raises(ModuleNotFoundError, match="nowhere") as missing:
        demo.main(arguments, train_modules=("sys", "nowhere"))
    assert missing.value.name == "nowhere"
    assert not (tmp_path / "output").exists()


def test_the_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = []

    def run(output: Path, per_kind: int) -> None:
        outputs.append(output)

    monkeypatch.setenv("HOME", str(tmp_path))
    assert demo.main(["--output=~/output"], run) == exit_codes.DONE
    assert outputs == [tmp_path / "output"]


def test_help_opens_with_an_example_and_imports_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from datarater.meta_training.demo import demo\n"
        "try:\n"
        "    demo.main(['--help'])\n"
        "finally:\n"
        "    heavy = {'jax', 'numpy', 'pyarrow', 'rich', 'optax'} & set(sys.modules)\n"
        "    assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == exit_codes.DONE, done.stderr
    assert "\n\nExample:\n  datarater demo --output=demo_output\n\n" in done.stdout
    assert len(done.stdout.partition("Example:")[0].splitlines()) == 3
    assert done.stderr == ""
