"""Tests the public transforms: the same scores and the same selection as the commands."""

from __future__ import annotations

import ast
import doctest
import json
import logging
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest
from apache_beam.ml.inference.base import PredictionResult, RunInference

from datarater import pipelines
from datarater.pipelines import transforms
from datarater.pipelines.commands import curate
from datarater.pipelines.transforms import KeepTop, RaterModelHandler, ScoreDocuments
from tests.support.corpora import as_lines, make_records


def collected(
    build: Callable[[beam.Pipeline, Callable[[str], beam.PTransform]], Any], folder: Path
) -> dict[str, list]:
    """Runs a pipeline; returns the rows that reached each named sink."""
    folder.mkdir(exist_ok=True)

    def sink(name: str) -> beam.PTransform:
        def write(row: Any) -> None:
            with open(folder / name, "ab") as file:
                file.write(orjson.dumps(row, default=lambda value: value._asdict()) + b"\n")

        return name >> beam.Map(write)

    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        build(pipeline, sink)
    return {
        path.name: [json.loads(line) for line in path.read_bytes().splitlines()]
        for path in folder.iterdir()
    }


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    return make_records(120, 3)


@pytest.fixture(scope="module")
def curated(
    records: list[dict[str, Any]], rater: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, float], set[str]]:
    """Returns the scores of the command by id, and the ids that it keeps."""
    folder = tmp_path_factory.mktemp("command")
    (folder / "a.jsonl").write_bytes(as_lines(records))
    flags = [
        "--input",
        str(folder / "a.jsonl"),
        "--rater",
        str(rater),
        "--output",
        str(folder / "run"),
    ]
    assert curate.main([*flags, "--keep_fraction", "0.3"]) == 0
    rows = [
        row
        for path in (folder / "run/scores").glob("??/*.parquet")
        for row in pq.read_table(path).to_pylist()
    ]
    kept = (folder / "run/selections/keep-0.3/kept").iterdir()
    ids = {json.loads(line)["id"] for path in kept for line in path.read_bytes().splitlines()}
    return {json.loads(row["key"]): row["score"] for row in rows}, ids


def test_run_inference_gives_the_commands_scores_and_no_bad_record_takes_its_batch_along(
    records: list[dict[str, Any]],
    curated: tuple[dict[str, float], set[str]],
    rater: Path,
    tmp_path: Path,
) -> None:
    bad: list[Any] = [None, 7, "", {"id": "x"}, {"text": b"bytes"}, " \n"]
    handler = RaterModelHandler(str(rater), min_batch_size=50, max_batch_size=64)

    def row(result: PredictionResult) -> dict[str, Any]:
        example = result.example
        score = result.inference
        return {
            "id": example.get("id") if isinstance(example, dict) else None,
            "score": score.score,
            "reason": score.reason,
        }

    rows = collected(
        lambda pipeline, sink: (
            pipeline
            | beam.Create([*records, *bad])
            | RunInference(handler)
            | beam.Map(row)
            | sink("all")
        ),
        tmp_path / "out",
    )["all"]
    scores = {row["id"]: row["score"] for row in rows if row["reason"] is None}
    assert scores == curated[0]
    assert sorted(row["reason"] for row in rows if row["reason"]) == sorted(
        ["no_text", "no_text", "text_empty", "no_text", "text_not_a_string", "text_empty"]
    )


def test_score_then_keep_is_curate(
    records: list[dict[str, Any]],
    curated: tuple[dict[str, float], set[str]],
    rater: Path,
    tmp_path: Path,
) -> None:
    def build(pipeline: beam.Pipeline, sink: Callable[[str], beam.PTransform]) -> None:
        outputs = (
            pipeline
            | beam.Create([*records, {"id": "bad", "text": 5}])
            | ScoreDocuments(str(rater))
        )
        _ = outputs["rejected"] | sink("rejected")
        _ = outputs["scored"] | KeepTop(keep_fraction="0.3") | sink("kept")

    out = collected(build, tmp_path / "out")
    assert [(row["id"], row["datarater_reason"]) for row in out["rejected"]] == [
        ("bad", "text_not_a_string")
    ]
    assert {row["id"] for row in out["kept"]} == curated[1]
    originals = {record["id"]: record for record in records}
    for row in out["kept"]:
        assert row.pop("datarater_score") == curated[0][row["id"]]
        assert row.pop("datarater_tokens") == len(row["text"])
        assert row == originals[row["id"]]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"keep_count": 7}, 7),
        ({"keep_fraction": 0.5, "per": "source", "source_weights": {"s1": 0.5}}, 20 + 10 + 20),
        ({"keep_count": 30, "min_per_source": 8}, 30),
        ({"threshold": -1000}, 120),
        ({"token_budget": 10**9}, 120),
        ({"accept_batch": 4, "discard_fraction": 0}, 120),
    ],
)
def test_every_rule_keeps_its_number(
    records: list[dict[str, Any]], options: dict[str, Any], kept: int, tmp_path: Path
) -> None:
    rows = [
        {**record, "datarater_score": float(index % 7), "datarater_tokens": 3}
        for index, record in enumerate(records)
    ]
    out = collected(
        lambda pipeline, sink: pipeline | beam.Create(rows) | KeepTop(**options) | sink("kept"),
        tmp_path / "out",
    )
    assert len(out["kept"]) == kept


def test_elements_that_are_equal_in_everything_are_counted_too(tmp_path: Path) -> None:
    rows = [{"id": 1, "text": "a", "datarater_score": 0.5}] * 1000 + [
        {"id": 2, "text": "b", "datarater_score": 0.7}
    ]
    for options, count in (({"keep_count": 400}, 400), ({"keep_count": 3, "per": "source"}, 3)):
        folder = tmp_path / str(count)

        def build(
            pipeline: beam.Pipeline,
            sink: Callable[[str], beam.PTransform],
            options: dict[str, Any] = options,
        ) -> None:
            _ = pipeline | beam.Create(rows) | KeepTop(**options) | sink("kept")

        out = collected(build, folder)
        assert len(out["kept"]) == count
        assert sum(row["id"] == 2 for row in out["kept"]) == 1


def test_wrong_options_are_named() -> None:
    with pytest.raises(ValueError, match="exactly one of"):
        KeepTop()
    with pytest.raises(ValueError, match="given: keep_fraction, keep_count"):
        KeepTop(keep_fraction=0.1, keep_count=3)
    with pytest.raises(ValueError, match="outside"):
        KeepTop(keep_fraction=1.5)


def test_beam_yaml(
    records: list[dict[str, Any]],
    curated: tuple[dict[str, float], set[str]],
    rater: Path,
    tmp_path: Path,
) -> None:
    from apache_beam.yaml.yaml_transform import expand_pipeline

    elements = [{name: record[name] for name in ("id", "text", "source")} for record in records]
    elements.append({"id": "empty", "text": " ", "source": "s"})
    providers = Path(pipelines.__file__).parent / "providers.yaml"
    text = json.dumps(
        {
            "providers": [{"include": str(providers)}],
            "pipeline": {
                "transforms": [
                    {"type": "Create", "config": {"elements": elements}},
                    {"type": "ScoreDocuments", "input": "Create", "config": {"rater": str(rater)}},
                    {
                        "type": "KeepTop",
                        "input": "ScoreDocuments.scored",
                        "config": {"keep_fraction": 0.3},
                    },
                    {
                        "type": "WriteToJson",
                        "input": "KeepTop",
                        "config": {"path": str(tmp_path / "kept"), "num_shards": 1},
                    },
                ]
            },
        }
    )
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        expand_pipeline(pipeline, text)
    lines = [line for path in tmp_path.glob("kept*") for line in path.read_bytes().splitlines()]
    rows = [json.loads(line) for line in lines]
    assert {row["id"] for row in rows} == curated[1]
    for row in rows:
        assert np.float32(row["datarater_score"]) == np.float32(curated[0][row["id"]])


@pytest.fixture
def demo_rater(rater: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a rater where the examples expect it, in a fresh working directory."""
    (tmp_path / "demo_output").mkdir()
    (tmp_path / "demo_output/rater").symlink_to(rater)
    monkeypatch.chdir(tmp_path)


def the_first_example() -> str:
    """Returns the code at the top of the module's docstring."""
    assert transforms.__doc__ is not None
    _, _, rest = transforms.__doc__.partition(":\n\n")
    lines: list[str] = []
    for line in rest.splitlines():
        if line and not line.startswith("    "):
            break
        lines.append(line)
    return textwrap.dedent("\n".join(lines))


@pytest.mark.usefixtures("demo_rater")
def test_the_first_example_keeps_a_document_and_logs_no_warning(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        exec(compile(the_first_example(), "example", "exec"), {})
    rows = [ast.literal_eval(line) for line in capfd.readouterr().out.splitlines()]
    (kept,) = [row for row in rows if "datarater_score" in row]
    (rejected,) = [row for row in rows if "datarater_reason" in row]
    assert len(rows) == 2
    assert kept["id"] in (1, 2)
    assert (rejected["id"], rejected["datarater_reason"]) == (3, "no_text")
    # Beam's own RunInference warns where it cannot measure memory.
    warnings = [record.getMessage() for record in caplog.records]
    assert [text for text in warnings if "memory usage cannot be fetched" not in text] == []


@pytest.mark.usefixtures("demo_rater")
@pytest.mark.parametrize("public", [RaterModelHandler, ScoreDocuments, KeepTop])
def test_the_examples_of_the_transforms_run(public: type, caplog: pytest.LogCaptureFixture) -> None:
    # Doctests skip these examples, because they need a rater.
    globs = {**vars(transforms), "beam": beam}
    (test,) = doctest.DocTestFinder(recurse=False).find(public, public.__name__, globs=globs)
    for example in test.examples:
        example.options.pop(doctest.SKIP, None)
    runner = doctest.DocTestRunner(verbose=False)
    with caplog.at_level(logging.WARNING):
        runner.run(test)
    assert runner.summarize(verbose=False) == (0, len(test.examples))
    assert test.examples
    assert not [record for record in caplog.records if "type hint" in record.getMessage()]


def test_building_with_rows_logs_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        pipeline = beam.Pipeline(runner="FnApiRunner")
        rows = pipeline | beam.Create([beam.Row(id=1, text="a text")])
        outputs = rows | ScoreDocuments("unused")
        _ = outputs["scored"] | KeepTop(keep_count=1)
    assert [record.getMessage() for record in caplog.records] == []
