"""`datarater train` as a user meets it: one-line errors, and a TensorFlow dataset as pool."""

import argparse
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from absl import flags

from datarater.meta_training import train
from datarater.meta_training.configs import default
from datarater.meta_training.run.command import next_command
from datarater.meta_training.run.metrics import read_metrics
from datarater.meta_training.run.workdir import Workdir
from datarater.pipelines.commands import curate
from datarater.pipelines.commands.flags import parse
from datarater.rater_model import exit_codes
from datarater.rater_model.checkpoint import load_rater
from datarater.rater_model.scorer import Scorer
from tests.support import ROOT, training
from tests.support.tensorflow_dataset import build_dataset


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"population__sise": 3}, "sise"),
        ({"meta_steps": "many"}, "many"),
        ({"data__inner": ""}, "data.inner is empty: give the pool"),
        ({"data__inner": "tfds:nothing/en"}, "there is no dataset 'nothing/en'"),
        ({"data__outer_share": 0}, "data.outer_share must be between 0 and 1"),
        (
            {"data__windows": "rows"},
            "data.windows must be one of ('packed', 'document'), not 'rows'",
        ),
        ({"population__size": 0}, "population"),
        ({"checkpoint_every": 0}, "checkpoint_every must be at least 1, not 0"),
        ({"length": 100_000}, "do not fill one window of 100,000 tokens"),
        (
            {"tokenizer__kind": "bpe", "tokenizer__vocabulary_size": 20},
            "a vocabulary of at least 258 ids",
        ),
    ],
)
def test_wrong_usage_is_reported_in_one_line(
    tmp_path: Path,
    texts: Path,
    capsys: pytest.CaptureFixture[str],
    changed: dict[str, object],
    message: str,
) -> None:
    done = training.run_here(
        training.command(tmp_path / "work", texts, data__tfds_data_dir=tmp_path, **changed), capsys
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("datarater train: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert not (tmp_path / "work" / "config.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--workdir is missing"),
        (["--config=default"], "--workdir is missing"),
        (["--config=nowhere.py", "--workdir=work"], "nowhere.py"),
        (["--config=defualt", "--workdir=work"], "did you mean default?"),
        (["--config=default", "--workdir=work", "--nonsense"], "nonsense"),
        (["--config=default", "--workdir=work", "corpus.jsonl"], "corpus.jsonl"),
    ],
)
def test_a_wrong_command_line_is_reported_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = training.run_here([*training.command(Path("work"), "texts")[:3], *arguments], capsys)
    assert done.returncode == 2
    assert done.stderr.startswith("datarater train: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not Path("work").exists()


def test_each_trouble_has_its_exit_code(
    tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    no_match = training.run_here(
        training.command(tmp_path / "work", texts, data__inner="nowhere/*.jsonl"), capsys
    )
    assert (no_match.returncode, no_match.stderr.count("\n")) == (exit_codes.NO_INPUT, 1)
    assert "no file matches 'nowhere/*.jsonl'" in no_match.stderr

    (tmp_path / "empty.jsonl").write_text("")
    empty = training.run_here(training.command(tmp_path / "work", tmp_path / "empty.jsonl"), capsys)
    assert (empty.returncode, empty.stderr.count("\n")) == (exit_codes.EMPTY_CORPUS, 1)
    assert "the inner set has no document" in empty.stderr

    command = [
        part.replace("=somewhere", "=gs://bucket/work")
        for part in training.command(Path("somewhere"), texts)
    ]
    remote = training.run_here(command, capsys)
    assert remote.returncode == exit_codes.WRONG_USAGE
    assert "a workdir lies on a local or mounted file system" in remote.stderr


@pytest.mark.slow
def test_a_process_leaves_with_the_code_and_the_line_of_its_trouble(tmp_path: Path) -> None:
    done = training.run(training.command(tmp_path / "work", "nowhere/*.jsonl"))
    assert (done.returncode, done.stdout) == (exit_codes.NO_INPUT, "")
    assert done.stderr.startswith("datarater train: no file matches 'nowhere/*.jsonl'")
    assert done.stderr.count("\n") == 1


def test_help_has_an_example_the_flags_and_the_configs(capsys: pytest.CaptureFixture[str]) -> None:
    done = training.run_here([*training.command(Path("work"), "texts")[:3], "--help"], capsys)
    assert done.returncode == exit_codes.DONE
    assert "\n\nExample:\n  datarater train " in done.stdout.partition("usage:")[0]
    for part in (
        "--workdir=work",
        "--config.SECTION.FIELD=VALUE",
        "default, c4, c4_noclean, corruption, cpu_hour, cpu_minutes, demo, gpu_day, gpu_hour, ",
        "Exit codes:",
    ):
        assert part in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["--config=defualt", "--workdir=work"]])
def test_help_and_wrong_usage_import_no_heavy_library(arguments: list[str]) -> None:
    program = (
        "import sys; from datarater.meta_training import train; train.main(sys.argv[1:]); "
        "print(*{'jax', 'apache_beam', 'grain', 'optax', 'flax', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == ""


def test_a_missing_train_extra_is_named_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    modules = ("ml_collections", "nowhere.part", "optax")
    assert train.main(["--workdir=work"], modules) == exit_codes.FAILED
    assert capsys.readouterr().err == (
        "datarater train needs the train extra: pip install 'datarater[train]' "
        "(no module named 'nowhere.part')\n"
    )
    assert train.main(["--help"]) == exit_codes.DONE


def parsed(*arguments: str) -> Any:
    values = flags.FlagValues()
    train.parse_flags(arguments, values)
    return values


def test_a_config_is_given_by_name_or_as_a_file_or_left_out(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "from datarater.meta_training.configs import demo\n"
        "def get_config(steps='7'):\n"
        "    config = demo.get_config()\n"
        "    config.meta_steps = int(steps)\n"
        "    return config\n"
    )

    default_steps = default.get_config().meta_steps
    assert parsed("--workdir=work").config.meta_steps == default_steps
    assert parsed("--workdir=work", "--config.meta_steps=3").config.meta_steps == 3
    assert parsed("--config=pile", "--workdir=work").config.population.size == 8
    assert parsed("--config.seed=5", "--config=demo", "--workdir=work").config.seed == 5
    assert parsed(f"--config={own}", "--workdir=work").config.meta_steps == 7
    assert parsed("--config", f"{own}:9", "--workdir", "work").config.meta_steps == 9
    orders = parsed("--workdir=work", "--config.rater.ngram_orders=(2,3)").config.rater.ngram_orders
    assert orders == (2, 3)
    assert parsed("--workdir=work").config.rater.ngram_orders == (2,)


def test_flags_of_absl_and_flag_files_are_read(tmp_path: Path) -> None:
    file = tmp_path / "flags"
    file.write_text("--config=demo\n--config.seed=5\n")
    values = parsed(f"--flagfile={file}", "--workdir=work", "--verbosity=-1")
    assert (values.config.length, values.config.seed, values.verbosity) == (128, 5, -1)


def test_a_tilde_stands_for_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.py").write_text("from datarater.meta_training.configs.demo import get_config")
    values = parsed(
        "--config=~/own.py",
        "--workdir=~/work",
        "--config.data.inner=~/a/*.jsonl,/b/~c.jsonl,~/d.jsonl",
        "--config.data.outer=gs://bucket/~e.jsonl",
        "--config.data.tfds_data_dir=~/tfds",
    )
    data = values.config.data
    assert values.workdir == f"{tmp_path}/work"
    assert data.inner == f"{tmp_path}/a/*.jsonl,/b/~c.jsonl,{tmp_path}/d.jsonl"
    assert data.outer == "gs://bucket/~e.jsonl"
    assert data.tfds_data_dir == f"{tmp_path}/tfds"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("def get_config(): pass", "get_config() must return a ConfigDict, not a NoneType"),
        ("def get_config(): return int('x')", "invalid literal for int() with base 10: 'x'"),
        ("import nowhere_at_all", "No module named 'nowhere_at_all'"),
        (
            "from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({'a': 1})",
            "the config has no field seed: start from the default config",
        ),
    ],
)
def test_a_broken_config_file_is_reported_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    (tmp_path / "own.py").write_text(content)
    arguments = [f"--config={tmp_path / 'own.py'}", f"--workdir={tmp_path / 'work'}"]
    assert train.main(arguments) == exit_codes.WRONG_USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "work").exists()


def test_a_workdir_that_cannot_be_made(
    tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    done = training.run_here(training.command(tmp_path / "file" / "work", texts), capsys)
    assert done.returncode == exit_codes.FAILED
    assert done.stderr.startswith("datarater train: ")
    assert "--workdir: " in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small dataset of a train and a validation split."""
    folder = tmp_path_factory.mktemp("dataset")
    pool = training.write_texts(folder / "pool.jsonl").read_text().splitlines()
    target = training.write_texts(folder / "target.jsonl", count=80, seed=1)
    splits: dict[str, list[str | bytes]] = {
        "train": [*pool, "  ", b"\xff"],
        "validation": [*target.read_text().splitlines()],
    }
    build_dataset(folder / "datasets", splits)
    return folder / "datasets"


def on_dataset(workdir: Path, dataset: Path) -> list[str]:
    """Returns the command that trains on the dataset."""
    return training.command(
        workdir,
        "tfds:tiny:train",
        data__outer="tfds:tiny:1.0.0:validation",
        data__tfds_data_dir=dataset,
    )


@pytest.fixture(scope="module")
def trained_on_dataset(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of an uninterrupted run on the dataset."""
    workdir = tmp_path_factory.mktemp("trained") / "work"
    done = training.run(on_dataset(workdir, dataset))
    assert done.returncode == 0, done.stderr
    assert "resuming" not in done.stderr
    assert "Traceback" not in done.stderr
    return workdir


@pytest.mark.slow
def test_a_dataset_built_offline_trains_a_rater(trained_on_dataset: Path) -> None:
    assert len(read_metrics(trained_on_dataset / "metrics" / "metrics.csv")) == 24
    rater = load_rater(trained_on_dataset / "rater")
    assert " of 200 documents" in rater.provenance["data"]["inner"]
    assert rater.provenance["data"]["rejected"]["inner"] == {
        "text_empty": 1,
        "text_not_unicode": 1,
    }
    scores_N = Scorer(rater).score(["alpha beta gamma", "zeta eta theta"]).scores_N
    assert scores_N[0] != scores_N[1]


@pytest.mark.drill
def test_a_killed_run_on_a_dataset_resumes(
    trained_on_dataset: Path, dataset: Path, tmp_path: Path
) -> None:
    arguments = on_dataset(tmp_path / "killed", dataset)
    process = training.start(arguments)
    list(training.lines_until(process, "step 8/24"))
    process.send_signal(signal.SIGKILL)
    process.wait()

    done = training.run(arguments)
    assert done.returncode == 0, done.stderr
    assert "resuming" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(read_metrics(tmp_path / "killed" / "metrics" / "metrics.csv")) == 24
    assert training.digest(tmp_path / "killed" / "rater") == training.digest(
        trained_on_dataset / "rater"
    )


def curation_flags(command: str) -> argparse.Namespace:
    """Reads a command line as `datarater curate` does."""
    program, subcommand, *words = shlex.split(command)
    assert (program, subcommand) == ("datarater", "curate")
    args, _ = parse(curate.make_parser(), words)
    return args


@pytest.mark.parametrize(
    ("inner", "changed", "expected"),
    [
        ("corpus/*.jsonl.gz", {}, {}),
        (
            "my corpus/*.gz,it's/b.jsonl",
            {"text_field": "meta data.text"},
            {"text_field": "meta data.text"},
        ),
        ("tfds:c4/en:3.0.1:train", {"tfds_data_dir": "/my data"}, {"tfds_data_dir": "/my data"}),
        ("tfds:c4/en", {}, {"tfds_data_dir": ""}),
        (
            "corpus/*.jsonl.gz",
            {"tfds_data_dir": "/data"},
            {"tfds_data_dir": ""},
        ),  # of the outer set's
    ],
)
def test_the_next_command_is_one_that_curation_reads(
    inner: str, changed: dict[str, str], expected: dict[str, str], tmp_path: Path
) -> None:
    data = default.get_config().data
    data.update({"inner": inner, **changed})
    workdir = Workdir(tmp_path / "my work")
    given = curation_flags(next_command(workdir, data))
    assert given.input == [inner]
    assert given.rater == str(workdir.rater)
    assert {name: getattr(given, name) for name in expected} == expected
    assert ("--text_field" in next_command(workdir, data)) == ("text_field" in changed)


@pytest.mark.parametrize(
    ("inner", "whole"),
    [
        ("tfds:c4/en:train[:10%]", "tfds:c4/en:train"),
        (
            "tfds:c4/en:3.0.1:train[:10%]+train[20%:]+validation",
            "tfds:c4/en:3.0.1:train+validation",
        ),
    ],
)
def test_the_next_command_reads_whole_splits(inner: str, whole: str, tmp_path: Path) -> None:
    data = default.get_config().data
    data.inner = inner
    assert curation_flags(next_command(Workdir(tmp_path), data)).input == [whole]
