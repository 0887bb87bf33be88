from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
import yaml  # type: ignore[import-untyped]
from apache_beam.options.pipeline_options import GoogleCloudOptions, WorkerOptions

from datarater.pipelines.batch.config import BatchConfig, Limits, Retention, read_config
from datarater.pipelines.errors import CurationError, UsageError
from datarater.pipelines.run_folder.identity import RunOptions
from datarater.pipelines.runners.choice import available_cores
from datarater.pipelines.selection.policy import Policy
from datarater.pipelines.selection.rules import BatchTopK
from datarater.rater_model.checkpoint import load_rater
from datarater.rater_model.documents.records import DEFAULT_ZSTD_WINDOW_BYTES, ReadOptions
from datarater.rater_model.scoring_options import SCORER_VERSION, ScoringOptions
from tests.support import ROOT, batches
from tests.support.ranked_runs import a_tokenizer, write_table

DATE = datetime.date(2026, 1, 31)


def config(folder: Path, **changes: Any) -> BatchConfig:
    return read_config(str(batches.write_config(folder, **changes)))


def test_missing_keys_have_defaults(tmp_path: Path) -> None:
    result = config(tmp_path, quiet_minutes=None)
    assert result.input == (f"{tmp_path}/in/{{date}}/*.jsonl",)
    assert result.rater == result.reference == f"{tmp_path}/rater"
    assert result.runs == f"{tmp_path}/state/runs"
    assert (result.quiet_minutes, result.late_days, result.changed_files) == (10, 7, "tell")
    assert result.limits == Limits(
        psi=0.25,
        ks=0.15,
        kept_share=0.2,
        rejected_share=0.05,
        min_documents=1,
        on_alarm="publish",
    )
    assert result.retention == Retention(None, None)
    assert result.curate == ("--keep_fraction=0.5",)
    assert result.beam == ()


def test_a_home_directory_is_expanded_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    places = {key: f"~/{key}" for key in ("rater", "reference", "state", "runs", "publish")}
    batches.write_config(tmp_path, input=["~/a/{date}/*", "b/~{date}"], **places)
    result = read_config("~/batch.yaml")
    assert result.path == f"{tmp_path}/batch.yaml"
    assert result.input == (f"{tmp_path}/a/{{date}}/*", f"{tmp_path}/b/~{{date}}")
    for key in places:
        assert getattr(result, key) == f"{tmp_path}/{key}"


def test_every_key_is_read(tmp_path: Path) -> None:
    result = config(
        tmp_path,
        input=["gs://crawl/{date}/*.gz,other/{date:%Y/%m}/*"],
        reference="/run",
        runs="runs",
        quiet_minutes=1.5,
        late_days=2,
        changed_files="take",
        limits={"psi": None, "ks": 0.5, "min_documents": 9, "on_alarm": "hold"},
        retention={"scores_days": 3, "published_days": None},
        curate={"accept_batch": 64, "discard_fraction": "3/4", "split_bytes": "8MiB"},
        beam={"runner": "FlinkRunner", "experiments": ["a", "b"], "streaming": True},
        beam_score={"flink_master": "gpus:8081"},
    )

    assert result.patterns(DATE) == ["gs://crawl/2026-01-31/*.gz", f"{tmp_path}/other/2026/01/*"]
    assert result.is_dated
    assert (result.reference, result.runs) == ("/run", f"{tmp_path}/runs")
    assert (result.quiet_minutes, result.late_days, result.changed_files) == (1.5, 2, "take")
    assert result.limits == Limits(psi=None, ks=0.5, min_documents=9, on_alarm="hold")
    assert result.retention == Retention(3, None)
    assert result.beam == (
        "--runner=FlinkRunner",
        "--experiments=a",
        "--experiments=b",
        "--streaming",
    )
    assert result.beam_score == ("--flink_master=gpus:8081",)


def test_scoring_may_have_flags_of_its_own(tmp_path: Path) -> None:
    beam = {
        "runner": "DataflowRunner",
        "project": "p",
        "region": "r",
        "temp_location": "gs://b/temp",
        "worker_machine_type": "n2-standard-4",
        "sdk_container_image": "image@sha256:cpu",
    }
    changes: dict[str, Any] = {
        key: f"gs://b/{key}" for key in ("input", "rater", "reference", "state", "publish", "runs")
    }
    one_job = config(tmp_path, beam=beam, **changes)
    assert one_job.execution_of_scoring() is None

    on_gpu = {
        "worker_machine_type": "g2-standard-4",
        "sdk_container_image": "image@sha256:cuda12",
        "dataflow_service_options": "worker_accelerator=type:nvidia-l4;count:1",
    }
    two_jobs = config(tmp_path, beam=beam, beam_score=on_gpu, **changes)
    scoring, selection = two_jobs.execution_of_scoring(), two_jobs.execution()
    assert scoring is not None
    assert (scoring.has_gpu, selection.has_gpu) == (True, False)
    for execution, machine, image in (
        (scoring, "g2-standard-4", "image@sha256:cuda12"),
        (selection, "n2-standard-4", "image@sha256:cpu"),
    ):
        options = execution.options.view_as(WorkerOptions)
        assert (options.machine_type, options.sdk_container_image) == (machine, image)
        assert execution.options.view_as(GoogleCloudOptions).project == "p"


def test_a_threshold_needs_no_reference(tmp_path: Path) -> None:
    batches.save_plain_rater(tmp_path / "rater")
    _, selection = config(tmp_path, curate={"threshold": -0.5}, reference="run").requests()
    assert (selection.reference, selection.name) == (None, "threshold--0.5")


def test_the_requests_of_a_batch_are_those_of_the_flags(tmp_path: Path) -> None:
    rater = load_rater(batches.save_plain_rater(tmp_path / "rater"))
    changes = {"accept_batch": 64, "discard_fraction": "3/4", "split_bytes": "8MiB"}
    scoring, selection = config(
        tmp_path, reference="/run", curate={**changes, "local_workers": 3}
    ).requests()

    assert (scoring.rater, scoring.output) == (f"{tmp_path}/rater", f"{tmp_path}/state/runs")
    assert scoring.options == RunOptions(
        rater=rater.digest,
        read=ReadOptions(max_zstd_window_bytes=DEFAULT_ZSTD_WINDOW_BYTES),
        scoring=ScoringOptions(),
        scorer_version=SCORER_VERSION,
        split_bytes=8 * 2**20,
    )
    assert scoring.workers_to_fill == min(3, available_cores())
    assert selection.report_texts == 0, "a batch publishes text of the corpus unasked"
    assert selection.policy == Policy(BatchTopK.discarding(64, "3/4"))
    assert (selection.reference, selection.output) == ("/run", scoring.output)


def test_a_state_folder_that_no_worker_sees_is_refused(tmp_path: Path) -> None:
    dataflow = {
        "runner": "DataflowRunner",
        "project": "p",
        "region": "r",
        "temp_location": "gs://t",
    }
    folders = {key: f"gs://{key}" for key in ("runs", "publish", "rater", "reference")}
    with pytest.raises(UsageError, match=f"--state: {tmp_path}/state is on this machine"):
        config(tmp_path, beam=dataflow, **folders).requests()


def test_flags_of_beam_on_the_command_line_come_last(tmp_path: Path) -> None:
    path = batches.write_config(tmp_path, beam={"runner": "FlinkRunner"})
    assert read_config(str(path), ["--runner=other"]).beam == (
        "--runner=FlinkRunner",
        "--runner=other",
    )


def test_environment_variables_are_replaced_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUCKET", "crawl${BUCKET}")
    result = config(
        tmp_path, input="gs://${BUCKET}/*", curate={"keep_fraction": 1, "text_field": "$${BUCKET}"}
    )
    assert result.input == ("gs://crawl${BUCKET}/*",)
    assert "--text_field=${BUCKET}" in result.curate
    monkeypatch.delenv("BUCKET")
    with pytest.raises(
        UsageError, match=r"batch\.yaml: input: the environment variable BUCKET is not set"
    ):
        config(tmp_path, input="gs://${BUCKET}/*")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": None}, "input is missing"),
        ({"rater": None}, "rater is missing"),
        ({"curate": None}, "curate is missing"),
        (
            {"publish": None, "publich": "x"},
            "publish is missing; is 'publich' a misspelling of it?",
        ),
        ({"quiet_minuts": 3}, "quiet_minuts: unknown key; did you mean quiet_minutes?"),
        ({"zebra": 3}, "zebra: unknown key; the known keys are rater"),
        (
            {"limits": {"kept_shar": 3}},
            "limits.kept_shar: unknown key; did you mean kept_share?",
        ),
        ({"limits": 3}, "limits is not a mapping"),
        ({"limits": {"ks": 2}}, "limits.ks: 2 is not a number from 0 to 1, or null for no limit"),
        ({"limits": {"ks": True}}, "limits.ks: True is not a number"),
        (
            {"limits": {"min_documents": 0}},
            "limits.min_documents: 0 is not a whole number, at least 1, or null for no limit",
        ),
        ({"limits": {"on_alarm": "shout"}}, "'shout' is not one of publish, hold"),
        (
            {"retention": {"scores_days": 0}},
            "retention.scores_days: 0 is not a whole number of days, at least 1",
        ),
        ({"late_days": -1}, "late_days: -1 is not a whole number of days, at least 0"),
        ({"quiet_minutes": "soon"}, "quiet_minutes: 'soon' is not a number of minutes"),
        ({"changed_files": "forget"}, "changed_files: 'forget' is not one of tell, take, refuse"),
        ({"input": {"a": 1}}, "input: {'a': 1} is not a glob or a list of globs"),
        ({"input": []}, "input: [] is not a glob"),
        ({"input": "in/{date:}/*"}, "write {date}, or {date:%Y/%m/%d}"),
        ({"input": "in/{date}/*,all/*"}, "either every glob has {date} or none has"),
        (
            {"state": "state/{date}"},
            "state: 'state/{date}' contains {date}, which only input may contain",
        ),
        ({"state": 3}, "state: 3 is not text"),
        (
            {"late_days": 0, "quiet_minutes": 5},
            "late_days: 0 would lose the files that quiet_minutes leaves",
        ),
        ({"retention": {"published_days": 3}}, "retention.published_days is less than late_days"),
        ({"publish": "state"}, "must be three different folders"),
        ({"publish": "nowhere://x"}, "publish: nowhere://x: there is no file system nowhere://"),
        (
            {"curate": {"keep_fracton": 0.5}},
            "curate.keep_fracton: unknown key; did you mean keep_fraction?",
        ),
        (
            {"curate": {"output": "x"}},
            "curate.output is set by the batch: each batch has its own run folder",
        ),
        (
            {"curate": {"input_list": "x"}},
            "curate.input_list is set by the batch: give `input` at the top level of the file",
        ),
        (
            {"curate": {"keep_count": 5}},
            "curate.keep_count chooses the best within each batch, however bad the batch",
        ),
        ({"curate": {"token_budget": 5}}, "curate.token_budget chooses the best within each batch"),
        (
            {"curate": {"sample_tokens": 5, "temperature": 1}},
            "curate.sample_tokens chooses the best",
        ),
        (
            {"curate": {"keep_fraction": 0.5, "rank_by": "rater"}},
            "curate.rank_by ranks by numbers that the scores of the reference cannot be compared",
        ),
        ({"rater": ["a", "other=b"]}, "rater: ['a', 'other=b'] is not"),
        (
            {"curate": {"rater": "other=b"}},
            "curate.rater is set by the batch: give `rater` at the top level of the file",
        ),
        (
            {"curate": {"threshold": 0, "per": "source"}},
            "curate.per chooses the best within each batch",
        ),
        (
            {"curate": {"keep_fraction": None}},
            "curate.keep_fraction: None is not the value of a flag",
        ),
        ({"beam": {"runner": {"a": 1}}}, "beam.runner: {'a': 1} is not the value of a flag"),
    ],
)
def test_an_invalid_value_is_named_with_its_key(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as raised:
        config(tmp_path, **changes)
    assert "batch.yaml" in str(raised.value)
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(
    ("curate", "message"),
    [
        ({"keep_fraction": 2}, "curate: argument --keep_fraction: keep fraction: 2 is outside"),
        ({}, "curate: one of the arguments"),
        ({"keep_fraction": 0.5, "accept_batch": 8}, "not allowed with"),
        (
            {"keep_fraction": 0.5, "discard_fraction": 0.5},
            "--discard_fraction needs --accept_batch",
        ),
    ],
)
def test_an_impossible_rule_is_refused_before_any_work(
    tmp_path: Path, curate: dict[str, Any], message: str
) -> None:
    batches.save_plain_rater(tmp_path / "rater")
    with pytest.raises(UsageError, match=re.escape(message)):
        config(tmp_path, curate=curate).requests()


def test_signals_beside_the_score_are_those_beside_the_file(tmp_path: Path) -> None:
    batches.save_plain_rater(tmp_path / "rater")
    labels = [{"id": "a", "language": "en", "tokens": 3}]
    types = {"id": pa.string(), "language": pa.string(), "tokens": pa.int64()}
    write_table(tmp_path, "labels", [labels], **types)
    a_tokenizer().save(str(tmp_path / "tokenizer.json"))
    where = "labels.language in ('en', 'de')"
    joined = {"join": ["labels=labels-*.parquet"], "where": where, "dedup": 0.8}
    for tokens_from, resolved in (
        ("labels.tokens", "labels.tokens"),
        ("tokenizer.json", f"{tmp_path}/tokenizer.json"),
    ):
        curate = {"keep_fraction": 0.5, **joined, "tokens_from": tokens_from}
        _, selection = config(tmp_path, curate=curate).requests()
        assert selection.ranking is not None
        (table,) = selection.ranking.joins
        assert table.patterns == (f"{tmp_path}/labels-*.parquet",)
        assert (selection.ranking.where, selection.ranking.tokens_from) == (where, resolved)
        assert selection.deduplication is not None
        of_run = selection.of_run(f"{tmp_path}/run")
        assert of_run.deduplication is not None
        assert of_run.deduplication.output == of_run.output == f"{tmp_path}/run"


def test_an_unknown_flag_of_beam_is_refused_on_this_machine(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--made_up"):
        config(tmp_path, beam={"made_up": 1}).requests()


def test_a_missing_rater_is_named(tmp_path: Path) -> None:
    with pytest.raises(CurationError, match="is not a rater checkpoint"):
        config(tmp_path).requests()


def test_files_that_are_not_a_configuration(tmp_path: Path) -> None:
    path = tmp_path / "batch.yaml"
    with pytest.raises(UsageError, match=r"batch\.yaml cannot be read: No such file"):
        read_config(str(path))
    for text, message in (
        ("a: [", "is not YAML"),
        ("- a", "is not a mapping"),
        ("rater: x\nrater: y", "the key 'rater' is given twice"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=message):
            read_config(str(path))


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "published").write_text("")
    with pytest.raises(UsageError, match="is a file; name a folder"):
        config(tmp_path)


def test_a_configuration_on_another_file_system(tmp_path: Path) -> None:

    text = batches.write_config(tmp_path, state="gs://b/state").read_bytes()
    fsspec.filesystem("memory").pipe_file("/configs/batch.yaml", text)
    result = read_config("memory://configs/batch.yaml")
    assert (result.rater, result.publish, result.state) == (
        "memory://configs/rater",
        "memory://configs/published",
        "gs://b/state",
    )


def test_the_example_is_valid_and_gives_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUCKET", "bucket")
    monkeypatch.setenv("RUNS_BUCKET", "bucket-runs")
    path = ROOT / "deploy" / "batch.example.yaml"
    result = read_config(str(path))
    assert result.patterns(DATE) == ["gs://bucket/crawl/2026-01-31/*.jsonl.gz"]
    assert result.retention == Retention(30, None)
    assert result.limits == Limits()
    assert (result.quiet_minutes, result.late_days, result.changed_files) == (10, 7, "tell")
    assert result.runs == "gs://bucket-runs/nightly/runs"
    # It has every key, some of them commented out.
    whole = yaml.safe_load(re.sub(r"(?m)^# (?=beam:|beam_score:|  \w+:)", "", path.read_text()))
    assert set(whole) == {field for field in BatchConfig.__dataclass_fields__ if field != "path"}
    assert set(whole["limits"]) == set(Limits.__dataclass_fields__)
    assert set(whole["retention"]) == set(Retention.__dataclass_fields__)
    assert set(whole["beam"]) == {"runner", "project", "region"}
    assert "sdk_container_image" in whole["beam_score"], "GPUs need another image"
