"""What a stranger gets: the wheel, in fresh environments and in folders without the checkout."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from email import message_from_string
from pathlib import Path

import pytest

import datarater
from datarater import cli
from datarater.pipelines.run_folder.layout import RunFolder
from tests.drills.conftest import Environment
from tests.support import ROOT

pytestmark = [
    pytest.mark.drill,
    pytest.mark.timeout(3600),
    pytest.mark.xdist_group("wheel"),
]

LINKED = ("meta_training", "pipelines", "rater_model")
USERS_FOLDERS = ("pipelines", "meta_training", "rater_model", "tests", "deploy")


def package_files(checkout: Path) -> list[str]:
    """Returns every file of the package, named as it should be installed."""
    files = [
        f"datarater/{path.relative_to(checkout).as_posix()}"
        for folder in LINKED
        for path in (checkout / folder).rglob("*")
        if path.is_file()
    ]
    own = [
        path.relative_to(checkout).as_posix()
        for path in (checkout / "datarater").rglob("*")
        if path.is_file() and path.relative_to(checkout / "datarater").parts[0] not in LINKED
    ]
    return sorted(files + own)


def of_package(names: Iterable[str]) -> list[str]:
    """Returns the files, not folders, below datarater/."""
    return sorted(name for name in names if name.startswith("datarater/") and name[-1] != "/")


def test_the_wheel_contains_every_file_of_the_package_once(checkout: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert of_package(names) == package_files(checkout)
    others = {name.split("/")[0] for name in names} - {"datarater"}
    assert others == {f"datarater-{datarater.__version__}.dist-info"}


def test_the_source_distribution_contains_every_file_of_the_package_once(
    checkout: Path, tmp_path: Path
) -> None:
    if importlib.util.find_spec("build") is None:
        pytest.skip("the package build is not installed; it comes with the dev extra")
    subprocess.run(
        [sys.executable, "-m", "build", "--sdist", "--outdir", tmp_path, checkout],
        check=True,
        capture_output=True,
    )
    (archive,) = tmp_path.iterdir()
    with tarfile.open(archive) as opened:
        members = opened.getmembers()
    assert not [member.name for member in members if member.issym() or member.islnk()]
    names = [member.name.partition("/")[2] for member in members if member.isfile()]
    assert of_package(names) == package_files(checkout)
    needed = {"LICENSE", "README.md", "constraints.txt", "pyproject.toml", "setup.py"}
    assert needed <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "deploy/", *LINKED))]


def test_the_wheel_installs_nothing_but_datarater(base_environment: Environment) -> None:
    site = base_environment.site_packages
    metadata = f"datarater-{datarater.__version__}.dist-info"
    with open(site / metadata / "RECORD", newline="") as file:
        recorded = [row[0] for row in csv.reader(file)]
    tops = {name.split("/")[0] for name in recorded if not name.startswith("..")}
    assert tops == {"datarater", metadata}
    scripts = {name for name in recorded if name.startswith("..")}
    assert scripts == {"../../../bin/datarater"}
    for name in USERS_FOLDERS:
        assert not (site / name).exists()


def test_the_metadata_is_a_complete_page(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
        metadata = message_from_string(archive.read(name).decode())
    assert metadata["Version"] == datarater.__version__
    for field in ("Summary", "Author", "Home-page", "License", "License-File", "Keywords"):
        assert metadata[field], field
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload() == (ROOT / "README.md").read_text(encoding="utf-8")
    labels = {url.split(",")[0] for url in metadata.get_all("Project-URL", [])}
    assert {"Documentation", "Source", "Issues", "Changelog", "Paper"} <= labels
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])
    extras = set(metadata.get_all("Provides-Extra", []))
    assert {"train", "gcp", "s3", "hf", "tfds", "yaml", "dev"} <= extras


@pytest.mark.parametrize("command", ["", *cli.COMMANDS])
def test_every_command_prints_its_help(
    base_environment: Environment, empty_folder: Path, command: str
) -> None:
    words = [command, "--help"] if command else ["--help"]
    done = base_environment.run("datarater", *words, cwd=empty_folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert f"datarater {command}".strip() in done.stdout
    assert list(empty_folder.iterdir()) == []


def test_the_version_is_printed_by_the_command_and_by_the_module(
    base_environment: Environment, empty_folder: Path
) -> None:
    expected = f"datarater {datarater.__version__}\n"
    for words in (["datarater"], ["python", "-m", "datarater"]):
        done = base_environment.run(*words, "--version", cwd=empty_folder)
        assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")


def test_two_workers_curate_beside_folders_with_our_names(
    base_environment: Environment, empty_folder: Path, earlier_rater: Path
) -> None:
    # Each would end the process that imports it in place of a package of the wheel.
    for name in USERS_FOLDERS:
        (empty_folder / name).mkdir()
        for module in ("__init__.py", "supervise.py"):
            (empty_folder / name / module).write_text("raise SystemExit('imported by mistake')\n")
    records = [{"id": str(n), "text": f"The text of document {n}. " * 9} for n in range(200)]
    with gzip.open(empty_folder / "corpus.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)

    # Small splits, so that there is work for two workers.
    flags = ["--input=corpus.jsonl.gz", "--output=run", "--keep_fraction=0.5"]
    flags += ["--local_workers=2", "--split_bytes=300"]
    done = base_environment.run(
        "datarater", "curate", *flags, f"--rater={earlier_rater}", cwd=empty_folder
    )
    assert done.returncode == 0, done.stderr
    manifest = json.loads(
        Path(RunFolder(str(empty_folder / "run")).selection("keep-0.5").manifest_path).read_bytes()
    )
    assert manifest["counts"]["kept"] == 100


@pytest.fixture(scope="module")
def demo_folder(train_environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `datarater demo` has run."""
    folder = tmp_path_factory.mktemp("demo")
    done = train_environment.run("datarater", "demo", cwd=folder, timeout=3000)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kept" in done.stdout
    return folder


def test_the_demo_runs_from_the_wheel(demo_folder: Path) -> None:
    assert (demo_folder / "demo_output" / "rater" / "rater.json").exists()


def test_the_python_block_of_the_readme_runs(
    train_environment: Environment, demo_folder: Path
) -> None:
    blocks = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE
    )
    assert blocks, "the README has no Python block"
    (demo_folder / "readme.py").write_text("\n".join(blocks))
    done = train_environment.run("python", "readme.py", cwd=demo_folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout
