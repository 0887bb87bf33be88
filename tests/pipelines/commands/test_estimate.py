"""`--dry_run` estimates a run from a sample, and neither submits nor writes anything."""

import gzip
import io
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datarater.pipelines.commands import curate, estimate
from datarater.pipelines.errors import UsageError
from tests.support.corpora import as_lines, make_records


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of every way of counting: whole, by position, by an unpacked size, by a footer."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "small.jsonl").write_bytes(as_lines(make_records(20, 0)))
    (folder / "plain.jsonl").write_bytes(as_lines(make_records(900, 1)))
    (folder / "packed.jsonl.gz").write_bytes(gzip.compress(as_lines(make_records(700, 2))))
    buffer = io.BytesIO()
    texts = [record["text"] for record in make_records(500, 3)]
    pq.write_table(pa.table({"text": texts}), buffer, row_group_size=100)
    (folder / "table.parquet").write_bytes(buffer.getvalue())
    return folder


def test_the_estimate_is_near_the_truth_and_nothing_is_written(
    corpus: Path, rater: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    args = ["--input", f"{corpus}/*", "--rater", str(rater), "--output", str(output)]
    assert curate.main([*args, "--keep_fraction=0.5", "--dry_run", "--worker_price=2"]) == 0
    assert not output.exists()

    said = capsys.readouterr().out
    numbers = {
        match[1]: float(match[2].replace(",", ""))
        for match in re.finditer(r"^(\w+(?: \w+)?) +([\d,.]+)", said, re.MULTILINE)
    }
    assert numbers["files"] == 4
    assert numbers["documents"] == pytest.approx(2120, rel=0.1)
    assert "nothing was submitted or written" in said
    assert "n2-standard-8, 8 vCPUs, about $0.00 at $2.0000 an hour" in said


@pytest.mark.parametrize(
    ("name", "price", "vcpus", "expected"),
    [
        ("n2-standard-8", None, 8, 8 * estimate.VCPU_PRICES["n2-standard"]),
        ("c2-standard-16", 1.5, 16, 1.5),
        ("m7i.2xlarge", 0.4, 8, 0.4),
        ("c7g.large", 0.1, 2, 0.1),
    ],
)
def test_a_worker_type_says_its_size(
    name: str, price: float | None, vcpus: int, expected: float
) -> None:
    worker = estimate.worker_type(name, price)
    assert (worker.vcpus, worker.price) == (vcpus, pytest.approx(expected))


@pytest.mark.parametrize(
    ("name", "message"), [("huge", "a number of vCPUs"), ("m7i.xlarge", "--worker_price USD")]
)
def test_a_worker_type_without_size_or_price_is_refused(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        estimate.worker_type(name, None)
