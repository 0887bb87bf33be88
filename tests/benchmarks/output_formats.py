"""What writing the kept documents costs in each output format, and what a look at them costs.

    python -m tests.benchmarks.output_formats --corpus ../shared/corpora/dev

The corpus is scored by a digest of each text, which costs nearly nothing; the best half is kept.
The table shows the processor seconds for each 1,000 kept documents to plan, write and publish a
selection, and the bytes of its files beside those of the kept texts; then the processor seconds to
show ten documents. Megatron files are written with the bytes of the text, and with a byte-level BPE
of 8,192 tokens trained on the corpus itself if --bpe is given.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from datarater.pipelines.inspection.inspection import inspect_run
from datarater.pipelines.inspection.question import Question, Show
from datarater.pipelines.run_folder.layout import RunFolder
from datarater.pipelines.run_folder.manifest import TokenizerFields
from datarater.pipelines.selection.policy import Policy
from datarater.pipelines.selection.rules import KeepFraction
from datarater.rater_model.documents.files import list_files
from datarater.rater_model.documents.reading import read_file
from datarater.rater_model.documents.records import Document
from datarater.rater_model.plain_tokenizer import BYTES, load_plain_tokenizer
from datarater.rater_model.tokenizer import train_bpe
from tests.support.selections import score_run, select_from

HALF = Policy(KeepFraction("0.5"))
FORMATS = ("same", "jsonl", "parquet", "scores", "array_record", "huggingface", "mds", "megatron")


def tokenizer_options(path: str) -> dict[str, Any]:
    """Returns the options of a selection that writes tokens."""
    tokenizer = load_plain_tokenizer(path)
    fields = TokenizerFields(digest=tokenizer.digest, vocabulary_size=tokenizer.vocabulary_size)
    return {"tokenizer": fields, "tokenizer_path": path}


def trained_bpe(corpus: str, folder: Path) -> str:
    """Returns the path of a tokenizer that is trained on the first file of a corpus."""
    first = list_files([corpus])[0].path
    texts = (record.text for record in read_file(first) if isinstance(record, Document))
    path = folder / "tokenizer.json"
    path.write_bytes(train_bpe(texts, 8192).serialise())
    return str(path)


def measure(run: Path, name: str, output_format: str, options: dict[str, Any]) -> str:
    """Selects from a run; returns a line of the table."""
    began = time.process_time()
    _, manifest = select_from(run, output_format, policy=HALF, name=name, **options)
    seconds = time.process_time() - began
    counts = manifest.counts
    share = sum(file.bytes for file in manifest.files) / counts.kept_bytes
    return f"{name:<16}{1000 * seconds / counts.kept:>10.3f}{share:>12.2f}"


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", default="../shared/corpora/dev", help="input files")
    parser.add_argument("--bpe", action="store_true", help="train and use a BPE as well")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        run = Path(name) / "run"
        request = score_run(args.corpus, run)
        print(f"{'format':<16}{'s / 1,000':>10}{'bytes/text':>12}")
        for output_format in FORMATS:
            options = tokenizer_options(BYTES) if output_format == "megatron" else {}
            print(measure(run, output_format, output_format, options), flush=True)
        if args.bpe:
            options = tokenizer_options(trained_bpe(args.corpus, Path(name)))
            print(measure(run, "megatron-bpe", "megatron", options), flush=True)

        print(f"\n{'shown':<16}{'seconds':>10}")
        for show in (Show.BEST, Show.WORST, Show.CUTOFF, Show.RANDOM):
            began = time.process_time()
            folder = RunFolder(request.output)
            inspect_run(folder, Question(show=show), "same", 2**28)
            print(f"{show:<16}{time.process_time() - began:>10.3f}", flush=True)


if __name__ == "__main__":
    main()
