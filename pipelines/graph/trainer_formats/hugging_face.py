"""A Hugging Face data set: Parquet files under `data/`, and a card that describes them.

`datasets.load_dataset(FOLDER)` reads the folder `kept/` as it is, and so does the Hub once it is
uploaded. All documents have the columns `id`, `text`, `source`, `metadata` (JSON of all other
fields) and `datarater_score`, since the files of a data set have one schema. A Parquet input whose
own columns should stay is written with `--output_format parquet`.

The card `README.md` is made of the manifest alone, so it is the same however often it is written.
It begins with YAML: the files, the features and the sizes, where the size of the split is that of
its texts in UTF-8. The library loads no data set of none: then the folder has an empty Parquet file
for other readers.

Source: huggingface.co/docs/hub/datasets-cards.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import orjson
import pyarrow.parquet as pq
import yaml  # type: ignore[import-untyped]

from datarater.pipelines.graph.record_writers import DOCUMENT_SCHEMA, TableWriter
from datarater.pipelines.graph.second_read import KeptSplit
from datarater.pipelines.graph.trainer_formats.trainer_format import (
    RecordFiles,
    TrainerFormat,
    kept_documents,
)
from datarater.pipelines.run_folder.counts import by_count
from datarater.rater_model.counted import counted
from datarater.report.visible import short_name, visible

if TYPE_CHECKING:
    from datarater.pipelines.run_folder.kept_counts import KeptCounts
    from datarater.pipelines.run_folder.manifest import Manifest

CARD = "README.md"
_MAX_SOURCES = 30
_SIZES = ("K", "M", "B", "T")
_COLUMNS = {
    "id": "the document's id, as JSON if it is not a string; without one `sha256:` and the digest "
    "of its text",
    "text": "its text",
    "source": "its source; empty without one",
    "metadata": "all other fields of the record, as a JSON object",
    "datarater_score": "its score; scores are defined up to a constant, so compare them by rank",
}


class HuggingFaceFormat(TrainerFormat):
    """Parquet files under `data/` with a card."""

    name = "huggingface"
    suffix = "parquet"

    def file_name(self, index: int, count: int) -> str:
        """Returns the name that the datasets library itself gives to a file of a split."""
        return f"data/train-{index:05d}-of-{count:05d}.{self.suffix}"

    def records(self, kept: KeptSplit) -> Iterator[bytes]:
        """Yields rows as JSON."""
        for document in kept_documents(kept):
            yield orjson.dumps(document.row())

    def open(self, files: Sequence[BinaryIO], documents: int) -> RecordFiles:
        """Begins a Parquet file."""
        (file,) = files
        return _ParquetFile(file)

    def whole_files(self, manifest: Manifest) -> dict[str, bytes]:
        """Returns the card; and an empty Parquet file if nothing is kept, which has the columns."""
        files = {CARD: card(manifest).encode()}
        if not manifest.files:
            out = io.BytesIO()
            pq.ParquetWriter(out, DOCUMENT_SCHEMA).close()
            files[self.file_name(0, 1)] = out.getvalue()
        return files


class _ParquetFile:
    """A Parquet file of `DOCUMENT_SCHEMA`, which is written in row groups of bounded size."""

    def __init__(self, file: BinaryIO):
        self._writer = TableWriter(file)

    def add(self, record: bytes) -> None:
        """Adds a row."""
        self._writer.write_row(orjson.loads(record))

    def close(self) -> None:
        """Writes the waiting rows and the footer."""
        self._writer.close()


def card(manifest: Manifest) -> str:
    """Returns the card of a data set.

    Args:
        manifest: Manifest of the selection; its files are those of documents.
    """
    front = yaml.safe_dump(_front_matter(manifest), sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n{_body(manifest)}"


def size_category(documents: int) -> str:
    """Returns the Hub's category of a number of documents.

    Example:
        >>> size_category(999), size_category(1000), size_category(12_000_000)
        ('n<1K', '1K<n<10K', '10M<n<100M')
    """
    power = int(math.log10(max(documents, 1)) + 1e-12)
    if power < 3:
        return "n<1K"
    return "n>1T" if power >= 12 else f"{_power_of_ten(power)}<n<{_power_of_ten(power + 1)}"


def _power_of_ten(power: int) -> str:
    return f"{10 ** (power % 3)}{_SIZES[power // 3 - 1]}"


def _front_matter(manifest: Manifest) -> dict[str, Any]:
    text_bytes = manifest.counts.kept_bytes
    split = {"name": "train", "num_bytes": text_bytes, "num_examples": manifest.counts.written}
    sizes = {"dataset_size": text_bytes}
    # Only the bytes of what is kept are counted, without further copies.
    if manifest.counts.repeats:
        del split["num_bytes"]
        sizes = {}
    return {
        "pretty_name": f"Selection {manifest.name}",
        "task_categories": ["text-generation"],
        "tags": ["datarater"],
        "size_categories": [size_category(manifest.counts.written)],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": "data/train-*.parquet"}],
            }
        ],
        "dataset_info": {
            "features": [
                {"name": field.name, "dtype": _dtype(str(field.type))} for field in DOCUMENT_SCHEMA
            ],
            "splits": [split],
            "download_size": sum(file.bytes for file in manifest.files),
            **sizes,
        },
    }


def _dtype(arrow_type: str) -> str:
    return {"float": "float32"}.get(arrow_type, arrow_type)


def _body(manifest: Manifest) -> str:
    from datarater.report.selection import asked_for  # loads pages, which few workers need

    counts = manifest.counts
    cutoff = manifest.cutoff.get("lowest_score")
    facts = {
        "Rule": asked_for(manifest),
        "Lowest score kept": "" if cutoff is None else str(cutoff),
        "Rater": f"`{manifest.rater}`",
        "Seed": str(manifest.seed),
        "Records read": f"{counts.read:,}",
        "Kept": f"{counts.kept:,} ({counted(counts.kept_tokens, 'token')})",
        "Written with all copies": _written(counts),
        "Dropped": f"{counts.dropped:,}",
        **{
            f"Dropped: {reason}": f"{number:,}"
            for reason, number in by_count(counts.excluded_by_reason)
        },
        "Rejected": f"{counts.rejected:,}",
        **{
            f"Rejected: {reason}": f"{number:,}"
            for reason, number in by_count(counts.rejected_by_reason)
        },
    }
    cascade = manifest.identity.cascade
    if cascade is not None:
        facts["Student"] = f"`{cascade.student}`"

    sections = [
        f"# Selection {manifest.name}",
        "The documents of a corpus that a [DataRater](https://arxiv.org/abs/2505.17895) scores "
        "best. A rater learns how much training on a text lowers the loss of a language model on "
        "held-out data.",
        "```python\nimport datasets\n\n"
        'documents = datasets.load_dataset("PATH_OF_THIS_FOLDER", split="train")\n```',
        "## Columns",
        _table(("column", "content"), [(f"`{name}`", text) for name, text in _COLUMNS.items()]),
        "## Provenance",
        _table(("what", "value"), [(name, _cell(text)) for name, text in facts.items() if text]),
    ]
    if any(manifest.sources):
        sections += ["## Sources", _sources(manifest.sources)]
    return "\n\n".join(sections) + "\n"


def _written(counts: KeptCounts) -> str:
    """Returns how much is written where documents have copies; "" where each is written once."""
    if not counts.repeats:
        return ""
    tokens = counts.kept_tokens + counts.repeat_tokens
    return f"{counts.written:,} ({counted(tokens, 'token')})"


def _sources(sources: Mapping[str, KeptCounts]) -> str:
    """Returns the table of the sources with the most kept documents."""
    ordered = sorted(sources.items(), key=lambda item: (-item[1].kept, item[0]))
    rows = [
        (_cell(short_name(visible(name))) or "(none)", f"{one.kept:,}", f"{one.dropped:,}")
        for name, one in ordered[:_MAX_SOURCES]
    ]
    rest = [one for _, one in ordered[_MAX_SOURCES:]]
    if rest:
        more = f"({len(rest):,} more)"
        kept, dropped = (sum(getattr(one, name) for one in rest) for name in ("kept", "dropped"))
        rows.append((more, f"{kept:,}", f"{dropped:,}"))
    return _table(("source", "kept", "dropped"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    """Returns a text as one cell of a table, in which Markdown and HTML have no meaning."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;")
    return " ".join(escaped.replace("[", "&#91;").replace("*", "&#42;").split())
