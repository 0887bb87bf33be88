"""Submits whole jobs to a Dataflow service and a store on loopback, and runs what was staged."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import apache_beam as beam
import fsspec
import pytest

from datarater.pipelines.commands import curate
from datarater.pipelines.graph.curation import Curation
from datarater.pipelines.graph.inputs import Patterns
from datarater.pipelines.graph.requests import ScoringRequest, Work
from datarater.pipelines.run_folder import commits
from tests.support import ROOT, made_up_listing
from tests.support.cloud_storage import CloudStorage, cloud_storage, used_here
from tests.support.corpora import as_lines, make_records
from tests.support.dataflow_service import Dataflow, Job, dataflow_service
from tests.support.run_folders import run_options

BUCKET = "dataflow-bucket"
FOLDER = f"gs://{BUCKET}/project"
KEPT = "selections/keep-0.5"


@pytest.fixture(scope="module")
def store() -> Iterator[CloudStorage]:
    with cloud_storage(BUCKET) as running, used_here(running):
        yield running


@pytest.fixture(scope="module")
def service() -> Iterator[Dataflow]:
    with dataflow_service() as running:
        yield running


@pytest.fixture(scope="module")
def local_run(store: CloudStorage, rater: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local run over the same corpus and rater that are uploaded to the store."""
    local = tmp_path_factory.mktemp("local")
    (local / "in").mkdir()
    for number in range(3):
        (local / "in" / f"{number}.jsonl").write_bytes(
            as_lines(make_records(40, number)) + b"no JSON\n"
        )
    file_system = fsspec.filesystem("gs")
    for source, target in ((local / "in", "in"), (rater, "rater")):
        for path in sorted(source.iterdir()):
            file_system.pipe_file(f"{FOLDER}/{target}/{path.name}", path.read_bytes())
    assert curate.main(run_flags(f"{local}/in/*", str(rater), str(local / "run"))) == 0
    return local / "run"


def run_flags(inputs: str, rater: str, output: str, *more: str) -> list[str]:
    return [
        "--input",
        inputs,
        "--rater",
        rater,
        "--output",
        output,
        "--keep_fraction",
        "0.5",
        *more,
    ]


def submit(
    store: CloudStorage, service: Dataflow, output: str, *more: str
) -> subprocess.CompletedProcess[str]:
    """The command as a user of Dataflow gives it, but for the endpoint and `--no_auth`."""
    flags = [
        "--runner=DataflowRunner",
        "--project=datarater-test",
        "--region=us-central1",
        f"--temp_location=gs://{BUCKET}/tmp",
        f"--dataflow_endpoint={service.url}",
        "--no_auth",
        *more,
    ]
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "datarater.pipelines.commands.curate",
            *run_flags(f"{FOLDER}/in/*", f"{FOLDER}/rater", output),
            *flags,
        ],
        env={**os.environ, **store.environment, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
    )


def kept(run: str) -> tuple[dict[str, int], list[bytes]]:
    manifest = json.loads(commits.read_bytes(f"{run}/{KEPT}/manifest.json"))
    return manifest["counts"], [
        commits.read_bytes(f"{run}/{KEPT}/{file['path']}") for file in manifest["files"]
    ]


@pytest.mark.slow
def test_what_is_submitted_is_what_works(
    store: CloudStorage, service: Dataflow, local_run: Path
) -> None:
    output = f"{FOLDER}/run"
    image = "gcr.io/datarater-test/datarater:1"
    said = submit(
        store,
        service,
        output,
        "--setup_file=./setup.py",
        f"--sdk_container_image={image}",
        "--machine_type=n2-standard-8",
        "--max_num_workers=50",
    )
    (job,) = service.jobs.values()
    assert said.returncode == 0, said.stderr + job.error
    assert kept(output) == kept(str(local_run))

    environment = job.description["environment"]
    (pool,) = environment["workerPools"]
    print(json.dumps({name: pool[name] for name in sorted(pool) if name != "packages"}, indent=2))
    assert pool["machineType"] == "n2-standard-8"
    assert pool["autoscalingSettings"]["maxNumWorkers"] == 50
    assert pool["numThreadsPerWorker"] == 1
    assert [harness["containerImage"] for harness in pool["sdkHarnessContainerImages"]] == [image]
    assert "use_multiple_sdk_containers" in environment["experiments"]
    staged = {package["name"] for package in pool["packages"]}
    assert "workflow.tar.gz" in staged, "the project itself, for workers whose image lacks it"
    objects = fsspec.filesystem("gs").find(f"gs://{BUCKET}/tmp")
    assert any(name.endswith("pipeline.pb") for name in objects)
    assert not [name for name in {*objects, *staged} if "main_session" in name], (
        "nothing of the launcher is pickled"
    )


@pytest.mark.drill
def test_a_template_only_builds(store: CloudStorage, service: Dataflow, local_run: Path) -> None:
    output, template = f"{FOLDER}/from_template", f"gs://{BUCKET}/templates/curate"
    before = set(service.jobs)
    said = submit(store, service, output, f"--template_location={template}")
    assert said.returncode == 0, said.stderr
    assert set(service.jobs) == before, "no job is created"
    assert not commits.exists(f"{output}/scoring.json")
    description = json.loads(commits.read_bytes(template))
    job = Job(description)
    job.run()  # what the service does when somebody launches the template
    assert job.state == "JOB_STATE_DONE", job.error
    assert kept(output) == kept(str(local_run))


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("--project", "--project"),
        ("--region", "--region"),
        ("--temp_location", "--temp_location"),
        ("--output", "--output"),
        ("--rater", "--rater"),
    ],
)
def test_what_dataflow_needs_is_asked_for_before_anything_is_built(
    store: CloudStorage,
    missing: str,
    says: str,
    rater: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = {
        "--project": "datarater-test",
        "--region": "us-central1",
        "--temp_location": f"gs://{BUCKET}/tmp",
        "--output": f"{FOLDER}/refused",
        "--rater": f"{FOLDER}/rater",
        "--input": f"{FOLDER}/in/*",
    }
    local = {"--output": str(tmp_path / "run"), "--rater": str(rater)}
    if missing in local:
        flags[missing] = local[missing]
    else:
        del flags[missing]
    args = [word for item in flags.items() for word in item]
    assert curate.main([*args, "--keep_fraction", "0.5", "--runner=DataflowRunner"]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.slow
def test_the_graph_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    """Compares the graph's size with one planned split and with a million.

    Names in the graph are pickled and compressed, so a few bytes differ.
    """
    sizes = {}
    for files, per_file in ((1, 1), (1000, 1000)):
        output = str(tmp_path / f"run-{files:04d}")
        request = ScoringRequest(Patterns(("crawl/*",)), "gs://raters/r", output, run_options())
        made_up_listing.plan(files, per_file, output)
        pipeline = beam.Pipeline(runner="FnApiRunner")
        _ = pipeline | beam.Impulse() | Curation(Work(request))
        sizes[files * per_file] = len(pipeline.to_runner_api().SerializeToString())
    print(sizes)
    assert sizes[1_000_000] == pytest.approx(sizes[1], rel=0.01)
