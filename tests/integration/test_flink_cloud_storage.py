"""Flink with everything on gs://: two workers that share no disk."""

import json
import os
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest

from datarater.pipelines.commands import curate
from datarater.pipelines.run_folder import commits
from deploy.flink import cluster
from tests.support.cloud_storage import cloud_storage, used_here
from tests.support.corpora import as_lines, make_records
from tests.support.runners import FlinkForTests, one_flink_at_a_time

BUCKET = "flink-bucket"
FOLDER = f"gs://{BUCKET}/project"


def flags(inputs: str, rater: str, output: str, *more: str) -> list[str]:
    args = ["--input", inputs, "--rater", rater, "--output", output, "--keep_fraction", "0.5"]
    return [*args, "--split_bytes", "4000", "--workers_to_fill", "2", *more]


def kept(run: str) -> tuple[dict[str, int], list[bytes]]:
    manifest = json.loads(commits.read_bytes(f"{run}/selections/keep-0.5/manifest.json"))
    files = [
        commits.read_bytes(f"{run}/selections/keep-0.5/{file['path']}")
        for file in manifest["files"]
    ]
    return manifest["counts"], files


@pytest.mark.drill
@one_flink_at_a_time
@pytest.mark.usefixtures(
    "flink_cluster"
)  # skips where Flink cannot be; the cluster itself knows nothing of the store
def test_nothing_leans_on_a_shared_disk(rater: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "in"
    corpus.mkdir()
    for number in range(4):
        (corpus / f"{number}.jsonl").write_bytes(as_lines(make_records(60, number)) + b"no JSON\n")
    assert curate.main(flags(f"{corpus}/*", str(rater), str(tmp_path / "local"))) == 0
    with cloud_storage(BUCKET) as store, used_here(store):
        file_system = fsspec.filesystem("gs")
        for source, target in ((corpus, "in"), (rater, "rater")):
            for path in sorted(source.iterdir()):
                file_system.pipe_file(f"{FOLDER}/{target}/{path.name}", path.read_bytes())
        folder = tmp_path / "flink"
        try:
            flink = FlinkForTests.up(folder)
            (tmp_path / "launcher").mkdir()
            on_the_store = flags(
                f"{FOLDER}/in/*", f"{FOLDER}/rater", f"{FOLDER}/run", *flink.flags()
            )
            said = subprocess.run(
                [sys.executable, "-m", "datarater.pipelines.commands.curate", *on_the_store],
                cwd=tmp_path / "launcher",
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                },
                capture_output=True,
                text=True,
                timeout=600,
            )
        finally:
            cluster.down(folder)
        assert said.returncode == 0, said.stderr
        assert kept(f"{FOLDER}/run") == kept(str(tmp_path / "local"))
    for number in (1, 2):
        assert list((folder / f"work-{number}").iterdir()) == []
