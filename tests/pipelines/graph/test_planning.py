from __future__ import annotations

import bz2
import dataclasses
import gzip
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
import zstandard

from datarater.pipelines.errors import CountsError, CurationError, RunFolderMismatchError
from datarater.pipelines.graph import planning
from datarater.pipelines.graph.inputs import FileList, Patterns
from datarater.pipelines.graph.planning import FilePlan
from datarater.pipelines.graph.requests import ScoringRequest
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.layout import RunFolder, json_lines
from datarater.pipelines.run_folder.plan import find_plans, plan_of, read_group
from datarater.rater_model.documents.decompression import unpacked_size
from datarater.rater_model.documents.files import list_files
from datarater.rater_model.documents.reading import read_file, read_split
from datarater.rater_model.documents.records import Compression, Document
from tests.support.run_folders import run_options


def request_for(corpus: Path, output: Path, **options: Any) -> ScoringRequest:
    options = {"rater": "r", "split_bytes": 100, **options}
    return ScoringRequest(
        Patterns((str(corpus / "*"),)), "rater", str(output), run_options(**options)
    )


def planned(request: ScoringRequest) -> list[FilePlan]:
    return [
        FilePlan.of(info, request.options.read, request.options.split_bytes)
        for info in request.inputs.files()
    ]


def total(request: ScoringRequest) -> int:
    return sum(info.size for info in request.inputs.files())


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, lines in (("b", 10), ("a", 30), ("c", 0)):
        (folder / f"{name}.jsonl").write_text('{"text": "some text"}\n' * lines)
    return folder


def test_ordinals_follow_path_and_start_whatever_the_order_of_planning(
    corpus: Path, tmp_path: Path
) -> None:
    request = dataclasses.replace(request_for(corpus, tmp_path / "run"), files_per_chunk=1)
    chunks = [planning.plan_chunk(request, chunk) for chunk in planning.list_inputs(request)]
    assert len(chunks) == 3
    planning.commit_plan(request, chunks[::-1])
    groups = range(plan_of(request.folder).groups)
    tasks = [task for group in groups for task in read_group(request.folder, group)]
    assert [task.split.ordinal for task in tasks] == list(range(len(tasks)))
    places = [(task.split.path, task.split.start) for task in tasks]
    assert places == sorted(places)
    assert {Path(path).name for path, _ in places} == {"a.jsonl", "b.jsonl", "c.jsonl"}
    assert plan_of(request.folder).splits == len(tasks) > 8


def test_a_plan_is_cut_into_groups(corpus: Path, tmp_path: Path) -> None:
    request = dataclasses.replace(request_for(corpus, tmp_path / "run"), splits_per_group=4)
    planning.plan_now(request)
    plan = plan_of(request.folder)
    groups = [read_group(request.folder, group) for group in range(plan.groups)]
    assert [len(group) for group in groups[:-1]] == [4] * (len(groups) - 1)
    assert sum(len(group) for group in groups) == plan.splits
    assert all(task.group == number for number, group in enumerate(groups) for task in group)


def test_the_first_plan_wins_and_another_run_is_refused(corpus: Path, tmp_path: Path) -> None:
    request = request_for(corpus, tmp_path / "run")
    assert find_plans(request.folder) is None
    planning.plan_now(request)
    first = commits.read_bytes(request.folder.identity_path)
    planning.plan_now(request)
    assert commits.read_bytes(request.folder.identity_path) == first
    with pytest.raises(RunFolderMismatchError, match="rater is 'r' there, but 's' now"):
        planning.plan_now(request_for(corpus, tmp_path / "run", rater="s"))
    (corpus / "a.jsonl").write_text('{"text": "other"}\n')
    with pytest.raises(RunFolderMismatchError, match=r"a\.jsonl was modified"):
        planning.plan_now(request)


def test_a_plan_that_died_before_its_identity_does_not_stand_in_the_way(
    corpus: Path, tmp_path: Path
) -> None:
    request = request_for(corpus, tmp_path / "run")
    planning.plan_now(request)
    Path(request.folder.identity_path).unlink()
    (corpus / "a.jsonl").write_text('{"text": "other"}\n')
    planning.plan_now(request)
    assert len(read_group(request.folder, 0)) == plan_of(request.folder).splits
    assert planning.list_inputs(request) == []


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(CountsError, match="has no plan"):
        plan_of(RunFolder(str(tmp_path)))
    with pytest.raises(CurationError, match=r"nothing\.jsonl"):
        list(Patterns((str(tmp_path / "nothing.jsonl"),)).files())


# --- strides of big compressed streams ---


def pack(lines: list[bytes], kind: str) -> bytes:
    data = b"".join(lines)
    if kind == "gzip":
        return gzip.compress(data)
    if kind == "two members":
        return gzip.compress(b"".join(lines[:100])) + gzip.compress(b"".join(lines[100:]))
    return zstandard.ZstdCompressor().compress(data)


def unpack(path: Path) -> bytes:
    if path.suffix == ".gz":
        return gzip.decompress(path.read_bytes())
    return zstandard.ZstdDecompressor().decompress(path.read_bytes())


def write_stream(folder: Path, kind: str = "gzip", documents: int = 400) -> Path:
    folder.mkdir(exist_ok=True)
    rng = random.Random(0)
    lines = [
        json.dumps({"id": number, "text": f"{rng.getrandbits(8 * rng.randint(1, 400)):x}"}).encode()
        + b"\n"
        for number in range(documents)
    ]
    path = folder / ("big.jsonl.zst" if kind == "zstd" else "big.jsonl.gz")
    path.write_bytes(pack(lines, kind))
    return path


@pytest.mark.parametrize("kind", ["gzip", "two members", "zstd"])
@pytest.mark.parametrize(("workers", "count"), [(1, 2), (4, 4), (50, 7)])
def test_a_big_stream_is_strided_and_read_once(
    tmp_path: Path, kind: str, workers: int, count: int
) -> None:
    path = write_stream(tmp_path / "in", kind)
    request = dataclasses.replace(
        request_for(tmp_path / "in", tmp_path / "run"), workers_to_fill=workers
    )
    planning.plan_now(request)
    tasks = read_group(request.folder, 0)
    assert len(tasks) == count

    parts = [list(read_split(task.split, request.options.read)) for task in tasks]
    assert [record for part in parts for record in part] == list(read_file(str(path)))
    sizes = [sum(record.size for record in part if isinstance(record, Document)) for part in parts]
    assert max(sizes) < 1.6 * min(sizes)
    plan = plan_of(request.folder)
    assert plan.strided_files == 1
    assert 1 < plan.read_amplification <= 4
    assert f"{plan.read_amplification:.2f} times" in plan.describe()


def test_a_stream_of_many_members_is_cut_there_and_unpacked_once(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    lines = [
        json.dumps({"id": number, "text": f"text {number**7}"}).encode() + b"\n"
        for number in range(1000)
    ]
    path = folder / "big.jsonl.gz"
    path.write_bytes(
        b"".join(gzip.compress(b"".join(lines[start : start + 7])) for start in range(0, 1000, 7))
    )
    request = dataclasses.replace(
        request_for(folder, tmp_path / "run", split_bytes=2000), workers_to_fill=50
    )
    planning.plan_now(request)

    tasks = read_group(request.folder, 0)
    assert len(tasks) > 5
    assert all(task.split.virtual for task in tasks)
    records = [record for task in tasks for record in read_split(task.split, request.options.read)]
    assert [record.raw for record in records if isinstance(record, Document)] == [
        line[:-1] for line in lines
    ]

    plan = plan_of(request.folder)
    assert (plan.files_cut_at_members, plan.strided_files, plan.read_amplification) == (1, 0, 1.0)
    assert "1 compressed file is cut at gzip members or zstd frames" in plan.describe()


@pytest.mark.parametrize(
    ("amplification", "parts"), [(1.0, 1), (1.5, 2), (2.0, 3), (4.0, 7), (10.0, 19)]
)
def test_read_amplification_is_bounded(tmp_path: Path, amplification: float, parts: int) -> None:
    write_stream(tmp_path / "in")
    request = request_for(tmp_path / "in", tmp_path / "run")
    request = dataclasses.replace(
        request, workers_to_fill=100, max_read_amplification=amplification
    )
    (plan,) = planning.stride(planned(request), request, total(request))
    assert len(plan.cuts_Sx3) == parts
    assert plan.bytes_read <= amplification * plan.info.size * 1.001


def test_files_that_fill_the_workers_are_left_whole(tmp_path: Path) -> None:
    for number in range(8):
        path = write_stream(tmp_path / "in")
        path.rename(path.with_name(f"{number}.jsonl.gz"))
    request = request_for(tmp_path / "in", tmp_path / "run")
    for workers, parts in ((1, 1), (4, 1), (8, 2)):
        filled = dataclasses.replace(request, workers_to_fill=workers)
        assert [
            len(plan.cuts_Sx3) for plan in planning.stride(planned(filled), filled, total(filled))
        ] == [parts] * 8


def test_a_damaged_stream_is_one_split(tmp_path: Path) -> None:
    path = write_stream(tmp_path / "in")
    data = path.read_bytes()
    path.write_bytes(data[:100] + bytes(100) + data[200:])
    request = dataclasses.replace(request_for(tmp_path / "in", tmp_path / "run"), workers_to_fill=4)
    (plan,) = planning.stride(planned(request), request, total(request))
    assert len(plan.cuts_Sx3) == 1


def test_a_stream_cut_short_loses_the_same_whatever_the_strides(tmp_path: Path) -> None:
    path = write_stream(tmp_path / "in")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    request = request_for(tmp_path / "in", tmp_path / "run")
    (info,) = request.inputs.files()
    whole = FilePlan.of(info, request.options.read, 10**9, small_bytes=0)
    cut = dataclasses.replace(whole, unpacked=400 * 500).strided(6)
    records = [
        record for task in cut.tasks(0) for record in read_split(task.split, request.options.read)
    ]
    assert records == list(read_file(str(path)))


class Counting(io.BytesIO):
    """Counts the bytes that are read."""

    served = 0

    def read(self, count: int | None = -1, /) -> bytes:
        data = super().read(count)
        self.served += len(data)
        return data


@pytest.mark.parametrize("kind", ["gzip", "two members", "zstd", "zstd of unknown size", "bzip2"])
def test_the_size_of_a_stream_is_estimated_by_a_short_beginning(kind: str) -> None:
    rng = random.Random(0)
    words = [f"{rng.randrange(16**6):06x}" for _ in range(5000)]
    lines = [json.dumps({"text": " ".join(rng.choices(words, k=40))}) for _ in range(10_000)]
    data = "\n".join(lines).encode()
    compression, packed = {
        "gzip": (Compression.GZIP, lambda: gzip.compress(data, 6)),
        "two members": (Compression.GZIP, lambda: gzip.compress(data[:99]) + gzip.compress(data)),
        "zstd": (Compression.ZSTD, lambda: zstandard.compress(data)),
        "zstd of unknown size": (
            Compression.ZSTD,
            lambda: zstandard.ZstdCompressor(write_content_size=False).compress(data),
        ),
        "bzip2": (Compression.BZIP2, lambda: bz2.compress(data)),
    }[kind]
    content = packed()
    file = Counting(content)
    estimate = unpacked_size(file, compression, len(content), sample_bytes=2**15)
    is_stated = kind in ("gzip", "zstd")
    assert estimate == (len(data) if is_stated else pytest.approx(len(data), rel=0.15))
    # A block of bzip2 is only unpacked as a whole.
    most = 2**19 if kind == "bzip2" else 2**17 if compression is Compression.ZSTD else 2**15
    assert file.served <= most + 64 < len(content)


@pytest.mark.parametrize("kind", ["gzip", "two members", "zstd"])
def test_the_size_of_a_stream_is_estimated(tmp_path: Path, kind: str) -> None:
    path = write_stream(tmp_path / "in", kind, documents=4000)
    real = len(unpack(path))
    size = path.stat().st_size
    with open(path, "rb") as file:
        compression = Compression.ZSTD if kind == "zstd" else Compression.GZIP
        estimate = unpacked_size(file, compression, size, sample_bytes=300_000)
    assert estimate == (real if kind != "two members" else pytest.approx(real, rel=0.2))


def test_a_list_of_inputs_is_taken_as_it_was_found_then(corpus: Path, tmp_path: Path) -> None:
    files = list_files([str(corpus / "*")])
    path = str(tmp_path / "inputs.jsonl")
    commits.commit_if_absent(path, json_lines(files[:2]))
    (corpus / "a.jsonl").write_text("changed since\n")
    assert list(FileList(path).files()) == files[:2]
    with pytest.raises(CurationError, match=r"missing\.jsonl cannot be read"):
        list(FileList(f"{tmp_path}/missing.jsonl").files())
