"""The libraries that trainers use read what a selection writes, and write the same bytes.

Both libraries need PyTorch, gigabytes of it, so that no extra installs them; without them these
tests are skipped. To run them: `pip install mosaicml-streaming megatron-core torch` in an
environment of your own with the dev extra. The other tests read MDS and Megatron files by an
independent reader in `tests/support/trainer_files.py`, and ArrayRecord and Hugging Face folders by
the libraries themselves, which the dev extra installs.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.pipelines.graph.test_trainer_formats import BYTE_TOKENS, RECORDS, lines, read
from tests.support.selections import score_run, select_from

pytestmark = [pytest.mark.drill, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "in.jsonl").write_bytes(lines(RECORDS * 9))
    score_run(folder / "in.jsonl", folder / "run")
    return folder / "run"


def test_mosaicml_streaming_reads_the_samples_and_writes_the_same_shard(
    run: Path, tmp_path: Path
) -> None:
    streaming = pytest.importorskip("streaming", reason="mosaicml-streaming is not installed")
    kept, _ = select_from(run, "mds")
    dataset = streaming.StreamingDataset(local=str(kept), batch_size=1, validate_hash="sha256")
    samples = [dataset[number] for number in range(len(dataset))]
    assert [sample["text"] for sample in samples] == [row["text"] for row in RECORDS * 9]

    columns = {**dict.fromkeys(("id", "metadata", "source", "text"), "str")}
    columns |= {"datarater_score": "float32"}
    with streaming.MDSWriter(
        out=str(tmp_path), columns=columns, hashes=["sha256"], size_limit=None
    ) as writer:
        for sample in samples:
            writer.write(sample)
    (shard,) = kept.glob("*.mds")
    assert (tmp_path / "shard.00000.mds").read_bytes() == shard.read_bytes()
    index = json.loads((tmp_path / "index.json").read_bytes())
    index["shards"][0]["raw_data"]["basename"] = shard.name
    assert index == json.loads((kept / "index.json").read_bytes())


def test_megatron_core_reads_the_documents_and_writes_the_same_index(
    run: Path, tmp_path: Path
) -> None:
    indexed_dataset = pytest.importorskip(
        "megatron.core.datasets.indexed_dataset", reason="megatron-core is not installed"
    )
    torch = pytest.importorskip("torch", reason="which megatron-core needs, is not installed")

    kept, _ = select_from(run, "megatron", **BYTE_TOKENS)
    (path,) = kept.glob("*.bin")
    prefix = str(path.with_suffix(""))
    builder = indexed_dataset.IndexedDatasetBuilder(
        str(tmp_path / "own.bin"), dtype=indexed_dataset.DType.optimal_dtype(258)
    )
    documents = indexed_dataset.IndexedDataset(prefix)
    assert len(documents) == len(RECORDS) * 9
    for number, row in enumerate(read("megatron", kept)):
        tokens = documents[number]
        assert bytes(tokens[:-1].astype(np.uint8)).decode() == row["text"]
        builder.add_document(torch.IntTensor(tokens.astype(np.int32)), [len(tokens)])
    builder.finalize(str(tmp_path / "own.idx"))
    for suffix in ("bin", "idx"):
        own = (tmp_path / f"own.{suffix}").read_bytes()
        assert own == Path(f"{prefix}.{suffix}").read_bytes()
