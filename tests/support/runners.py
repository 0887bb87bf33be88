"""The runners that tests run on, and what must be the same on each.

A runner that is not here skips its tests, and says so; with DATARATER_REQUIRE_RUNNERS set, as where
all of them are known to be, its tests fail.
"""

import dataclasses
import gzip
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from datarater.pipelines.runners import prism
from deploy.flink import cluster, java
from tests.support import ROOT
from tests.support.trainer_files import read_mds

REQUIRED = "DATARATER_REQUIRE_RUNNERS"

one_flink_at_a_time = pytest.mark.xdist_group("flink")
"""For tests that share the Flink cluster: one process runs them all."""


def absent(runner: str, reason: str) -> None:
    """Skips a test whose runner is not here, or fails it where all runners must be.

    Args:
        runner: its name.
        reason: what is missing.
    """
    said = f"{runner} IS NOT TESTED: {reason}"
    if os.environ.get(REQUIRED):
        pytest.fail(f"{said} ({REQUIRED} is set)")
    pytest.skip(said)


def prism_flags() -> list[str]:
    """The flags for Prism, if it is here."""
    binary = shutil.which("prism") or (prism.BUILT_PRISM if prism.BUILT_PRISM.exists() else None)
    if binary is None:
        absent("Prism", "its binary is neither on PATH nor built by `make prism`")
    return ["--runner=PrismRunner"]


@dataclasses.dataclass
class FlinkForTests:
    """The tests' own Flink cluster.

    Attributes:
        folder: of its configuration and logs.
        cluster: as it is now.
    """

    folder: Path
    cluster: cluster.Cluster

    @classmethod
    def up(cls, folder: Path) -> "FlinkForTests":
        """Brings it up."""
        return cls(folder, cluster.up(folder, ROOT / cluster.DEFAULT_FOLDER, until_exit=True))

    def flags(self) -> list[str]:
        """The flags that lead to it."""
        return self.cluster.flags()


@pytest.fixture(scope="session")
def flink_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlinkForTests]:
    """One cluster for all tests of the process."""
    folder = tmp_path_factory.mktemp("flink")
    if shutil.which("mvn") is None:
        absent("Flink", "there is no mvn on PATH to fetch its jars with")
    try:
        java.find_java()
    except java.ClusterError as error:
        absent("Flink", str(error))
    try:
        yield FlinkForTests.up(folder)
    finally:
        cluster.down(folder)


def outcome(run: Path, selection: str) -> dict[str, Any]:
    """What of a run folder must not depend on the runner.

    Args:
        run: the run folder.
        selection: name of the selection.
    """
    folder = run / "selections" / selection
    manifest = json.loads((folder / "manifest.json").read_bytes())
    scores = [
        row for path in run.glob("scores/??/0*.parquet") for row in pq.read_table(path).to_pylist()
    ]
    return {
        "joins": manifest.get("joins"),
        "scores": sorted(
            str((row["key"], row["position"], row["score"], row.get("score_second"), row["status"]))
            for row in scores
        ),
        "scoring": json.loads((run / "scoring.json").read_bytes())["counts"],
        "manifest": {name: manifest[name] for name in ("counts", "sources", "cutoff")},
        "mixture": json.loads((folder / "mixture.json").read_bytes()),
        "kept": sorted(json.dumps(one) for one in kept_documents(folder, manifest)),
        "rejected": sorted(
            line for path in run.glob("rejected/*") for line in _lines(path.read_bytes())
        ),
    }


def duplicates_in(run: Path) -> list[str]:
    """Returns the near-duplicates of a run folder, which must not depend on the runner."""
    rows = pq.read_table(run / "duplicates" / "similarity-0.8" / "documents").to_pylist()
    return sorted(map(str, rows))


def kept_documents(folder: Path, manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the kept documents of a selection, after checking what its manifest says of them.

    Args:
        folder: Folder of the selection, with files in the format scores, mds or jsonl.
        manifest: Content of its manifest.
    """
    rows: list[dict[str, Any]] = []
    for entry in manifest["files"]:
        data = (folder / entry["path"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["bytes"], entry["sha256"])
        if manifest["output_format"] == "scores":
            documents = pq.read_table(folder / entry["path"]).to_pylist()
        elif manifest["output_format"] == "mds":
            continue
        else:
            documents = [json.loads(line) for line in _lines(data)]
        assert len(documents) == entry["documents"]
        rows += documents
    if manifest["output_format"] == "mds":
        rows = read_mds(folder / "kept")
        assert len(rows) == sum(entry["documents"] for entry in manifest["files"])
    return rows


def _lines(data: bytes) -> list[bytes]:
    return (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).splitlines()


def score_files(run: Path) -> dict[Path, int]:
    """The committed score files, each with what tells it from one written anew."""
    return {path: path.stat().st_ino for path in run.glob("scores/??/0*.parquet")}
