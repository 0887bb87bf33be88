"""Raters on the Hugging Face Hub, of which only the requests are replaced."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import huggingface_hub
import pytest
import yaml  # type: ignore[import-untyped]

from datarater import cli
from datarater.rater_model import exit_codes
from datarater.rater_model.checkpoint import (
    RaterCheckpoint,
    Recommendation,
    load_rater,
    load_recommendation,
    save_rater,
    save_recommendation,
)
from datarater.rater_model.hugging_face.hub import repository_files
from datarater.rater_model.tokenizer import ByteTokenizer
from tests.rater_model.hugging_face.test_exporting import exportable
from tests.support.hub_server import hub_server
from tests.support.raters import random_student, save_tiny_rater

PROVENANCE = {
    "step": 40,
    "config": {"seed": 3, "data": {"inner": "a|b/*.jsonl", "outer": ""}},
    "data": {"identity": "abc123"},
    "versions": {"jax": "0.6"},
}


@pytest.fixture
def rater(tmp_path: Path) -> RaterCheckpoint:
    made = exportable(ByteTokenizer())
    made.provenance.update(PROVENANCE)
    saved = save_rater(tmp_path / "rater", made)
    recommendation = Recommendation(0.25, -0.0125, -0.02, -0.005, 0.95, 3, saved.digest, "fed987")
    save_recommendation(tmp_path / "rater", recommendation)
    return saved


class Hub:
    """Records what the client is asked to do."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.created: list[tuple[str, Any]] = []
        self.files: dict[str, bytes] = {}
        monkeypatch.setenv("HF_TOKEN", "hf_test")

        def create_repo(api: Any, repository: str, private: Any, exist_ok: bool) -> str:
            assert exist_ok
            self.created.append((repository, private))
            return f"https://huggingface.co/{repository}"

        def create_commit(
            api: Any, repository: str, operations: list[Any], commit_message: str
        ) -> None:
            self.files = {
                operation.path_in_repo: operation.path_or_fileobj for operation in operations
            }

        monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *_: [])
        monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
        monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", create_commit)


def push(rater: Path, *more: str) -> int:
    words = ["push", "--rater", str(rater), "--repo", "my-org/my-rater", "--license", "mit", *more]
    return cli.main(words)


def test_what_is_pushed_is_the_rater_and_loads_again(
    rater: RaterCheckpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub = Hub(monkeypatch)
    assert push(tmp_path / "rater", "--private") == exit_codes.DONE
    assert hub.created == [("my-org/my-rater", True)]
    assert "hf://my-org/my-rater" in capsys.readouterr().out

    store = fsspec.filesystem("memory")
    for name, content in hub.files.items():
        store.pipe_file(f"/pushed/{name}", content)
    assert load_rater("memory://pushed").digest == rater.digest
    recommendation = load_recommendation("memory://pushed")
    assert recommendation is not None
    assert recommendation.keep == 0.25
    config = json.loads(hub.files["transformers/config.json"])
    assert config["architectures"] == ["EuroBertForSequenceClassification"]


def test_the_card_says_what_the_rater_records(rater: RaterCheckpoint, tmp_path: Path) -> None:
    card = repository_files(str(tmp_path / "rater"), "o/n", "cc-by-4.0")["README.md"].decode()
    _, head, text = card.split("---\n", 2)
    assert yaml.safe_load(head)["license"] == "cc-by-4.0"
    for line in (
        "| meta-steps | 40 |",
        "| pool | a\\|b/*.jsonl |",
        "| target | a held-out share of the pool |",
        "| identity of the data | abc123 |",
        "| versions | jax 0.6 |",
        "| best share to keep | 0.25 |",
        "| its 95% interval | -0.02 to -0.005 |",
        f"Digest of the rater: `{rater.digest}`",
        'subfolder="transformers"',
    ):
        assert line in text


@pytest.mark.parametrize(
    "path",
    [
        "s3://key:hush@bucket/pool/*.jsonl",
        "https://host/pool.jsonl?X-Amz-Signature=hush",
        "hf_" + "hush" * 9,
    ],
)
def test_credentials_in_what_a_rater_records_are_not_pushed(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = Hub(monkeypatch)
    made = exportable(ByteTokenizer())
    made.provenance["config"] = {"data": {"inner": ["plain-?.jsonl", path]}}
    save_rater(tmp_path / "rater", made)
    assert push(tmp_path / "rater") == exit_codes.WRONG_USAGE
    error = capsys.readouterr().err
    assert "rater.json has an address with credentials in provenance.config.data.inner[1]" in error
    assert "hush" not in error
    assert not hub.created


def test_markup_in_a_path_stays_text(tmp_path: Path) -> None:
    made = exportable(ByteTokenizer())
    made.provenance["config"] = {"data": {"inner": "a\\|b![x](https://host/x.png)`<img>"}}
    save_rater(tmp_path / "rater", made)
    card = repository_files(str(tmp_path / "rater"), "o/n", "mit")["README.md"].decode()
    line = "| pool | a\\\\\\|b!\\[x\\](https://host/x.png)\\`&lt;img> |"
    assert line in card


def test_a_rater_of_another_shape_or_a_student_is_pushed_without_transformers(
    tmp_path: Path,
) -> None:
    save_tiny_rater(tmp_path / "tables")
    save_rater(tmp_path / "student", random_student())
    for name in ("tables", "student"):
        files = repository_files(str(tmp_path / name), "o/n", "mit")
        assert sorted(files) == ["README.md", "params.safetensors", "rater.json", "tokenizer.json"]
        assert "transformers" not in files["README.md"].decode()
        assert "no recorded evaluation" in files["README.md"].decode()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--repo", "noslash"), "--repo: 'noslash' is not a repository as ORG/NAME"),
        (("--license", "see below"), "--license: 'see below' is not an identifier"),
        (("--rater", "missing"), "--rater: missing is not a rater checkpoint"),
    ],
)
def test_wrong_flags_are_refused(
    rater: RaterCheckpoint,
    flags: tuple[str, str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub = Hub(monkeypatch)
    assert push(tmp_path / "rater", *flags) == exit_codes.WRONG_USAGE
    assert message in capsys.readouterr().err
    assert not hub.created


def test_without_a_token_or_a_network_one_line_says_what_to_do(
    rater: RaterCheckpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Hub(monkeypatch)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert push(tmp_path / "rater") == exit_codes.NO_PERMISSION
    assert "set HF_TOKEN" in capsys.readouterr().err

    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_test")
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", unreachable)
    assert push(tmp_path / "rater") == exit_codes.FAILED
    error = capsys.readouterr().err
    assert "check the network" in error
    assert error.count("\n") == 1

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert push(tmp_path / "rater") == exit_codes.FAILED
    assert "pip install 'datarater[hf]'" in capsys.readouterr().err


def test_the_export_command_writes_or_refuses(
    rater: RaterCheckpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", "--rater", str(tmp_path / "rater"), "--output", str(tmp_path / "out")]
    assert cli.main(words) == exit_codes.DONE
    assert rater.digest[:12] in capsys.readouterr().out
    assert (tmp_path / "out" / "model.safetensors").exists()

    save_tiny_rater(tmp_path / "tables")
    words = ["export", "--rater", str(tmp_path / "tables"), "--output", str(tmp_path / "two")]
    assert cli.main(words) == exit_codes.WRONG_USAGE
    assert "--config.rater.ngram_orders='()'" in capsys.readouterr().err


@pytest.mark.slow
def test_the_real_client_uploads_a_rater_that_loads_from_its_repository(
    rater: RaterCheckpoint, tmp_path: Path
) -> None:
    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words],
            env={**os.environ, **hub.environment(), "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    with hub_server("my-org/my-rater") as hub:
        flags = ["--rater", str(tmp_path / "rater"), "--repo", hub.repository, "--license", "mit"]
        hub.files |= {"transformers/of-another-shape.json": b"{}", "notes.md": b"of the owner"}
        assert "next:" in run("-m", "datarater.cli", "push", *flags)
        assert hub.commits == 1
        assert "transformers/of-another-shape.json" not in hub.files
        assert hub.files["notes.md"] == b"of the owner"
        load = "import datarater; print(datarater.load_rater('hf://my-org/my-rater').digest)"
        assert run("-c", load).strip() == rater.digest
