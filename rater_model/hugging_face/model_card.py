"""Writes a rater's model card from what its checkpoint records."""

from __future__ import annotations

import json
from typing import Any

import yaml  # type: ignore[import-untyped]

from datarater.rater_model.checkpoint import RaterCheckpoint, Recommendation
from datarater.rater_model.ngram_rater import NgramConfig


def model_card(
    checkpoint: RaterCheckpoint,
    repository: str,
    license_id: str,
    recommendation: Recommendation | None = None,
    transformers_folder: str = "",
) -> str:
    """Returns the text of the `README.md` of a rater's repository.

    Args:
        checkpoint: The rater, saved or loaded, so that it has a digest.
        repository: Repository, as ORG/NAME.
        license_id: License of the rater.
        recommendation: Share to keep that an evaluation found best; None without one.
        transformers_folder: Folder of the rater as a model of `transformers`; empty without one.
    """
    head = {
        "license": license_id,
        "library_name": "datarater",
        "tags": ["datarater", "data-curation", "data-selection"],
    }
    sections = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {repository.partition('/')[2]}",
        "A rater of [DataRater](https://arxiv.org/abs/2505.17895): it gives a text a score, and "
        "texts with higher scores are worth more as training data of a language model. Scores "
        "compare texts with each other; they have no meaning of their own.",
        _use(repository, transformers_folder),
        _shape(checkpoint),
        _scores(checkpoint),
        _training(checkpoint.provenance),
        _evaluation(recommendation),
        _record(checkpoint),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _use(repository: str, transformers_folder: str) -> str:
    text = f"""\
## Use

```bash
pip install 'datarater[hf]'
datarater curate --rater hf://{repository} --input 'corpus/*.jsonl.gz' --output run \\
    --keep_fraction 0.5
```

```python
import datarater

scorer = datarater.make_scorer(datarater.load_rater("hf://{repository}"))
scorer.score(["A sentence that says something."]).scores_N
```"""
    if not transformers_folder:
        return text
    return f"""{text}

With `transformers` alone, one window of a text at a time:

```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{repository}", subfolder="{transformers_folder}")
model = AutoModelForSequenceClassification.from_pretrained(
    "{repository}", subfolder="{transformers_folder}"
)
batch = tokenizer(["A sentence."], padding=True, truncation=True, return_tensors="pt")
scores = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
```"""


def _shape(checkpoint: RaterCheckpoint) -> str:
    config = checkpoint.config
    rows: dict[str, Any] = {"tokenizer": checkpoint.tokenizer.kind}
    if isinstance(config, NgramConfig):
        rows["model"] = "linear, of hashed byte n-grams; a student of a rater"
    else:
        shape = config.transformer
        rows |= {
            "model": "non-causal transformer",
            "layers": shape.layers,
            "width": shape.width,
            "tokens of a window": config.window,
            "ids of the tokenizer": config.vocabulary_size,
            "n-gram tables": ", ".join(map(str, config.ngram_orders)) or "none",
        }
    return "## Model\n\n" + _table(rows)


def _scores(checkpoint: RaterCheckpoint) -> str:
    statistics = checkpoint.statistics
    if not statistics.quantiles:
        return ""
    rows = {
        "documents": f"{statistics.sample_size:,}",
        "standard deviation": _number(statistics.standard_deviation),
        **{f"{share}%": _number(statistics.quantiles[share]) for share in (5, 25, 50, 75, 95)},
    }
    return (
        "## Scores\n\nOf the reference sample, whose mean is 0, with the quantiles of its scores:"
        f"\n\n{_table(rows)}"
    )


def _training(provenance: dict[str, Any]) -> str:
    data = provenance.get("data")
    data = data if isinstance(data, dict) else {}
    config = provenance.get("config")
    config = config if isinstance(config, dict) else {}
    paths = config.get("data")
    paths = paths if isinstance(paths, dict) else {}
    rows = {
        "meta-steps": provenance.get("step"),
        "pool": paths.get("inner"),
        "target": paths.get("outer") or ("a held-out share of the pool" if paths else None),
        "identity of the data": data.get("identity"),
        "seed": config.get("seed"),
    }

    start = {name: provenance[name] for name in ("start", "models") if name in provenance}
    if start:
        rows["started from"] = json.dumps(start, sort_keys=True)
    versions = provenance.get("versions")
    if isinstance(versions, dict):
        rows["versions"] = ", ".join(f"{name} {number}" for name, number in versions.items())
    known = {name: value for name, value in rows.items() if value is not None}
    return "## Training\n\n" + _table(known) if known else ""


def _evaluation(recommendation: Recommendation | None) -> str:
    if recommendation is None:
        return (
            "## Evaluation\n\nThis rater has no recorded evaluation; `datarater evaluate --sweep` "
            "measures what it is worth and records the best share to keep."
        )
    rows = {
        "best share to keep": f"{recommendation.keep:g}",
        "difference of the loss from that of the whole corpus, nats per token": _number(
            recommendation.difference
        ),
        f"its {recommendation.confidence:.0%} interval": f"{_number(recommendation.low)} to "
        f"{_number(recommendation.high)}",
        "seeds": recommendation.seeds,
        "digest of the corpus": recommendation.corpus,
    }
    return "## Evaluation\n\n" + _table(rows)


def _record(checkpoint: RaterCheckpoint) -> str:
    """Returns the whole provenance, folded, and the digest."""
    record = json.dumps(checkpoint.provenance, indent=2, sort_keys=True, ensure_ascii=False)
    # A fence longer than any in the text, so that no value can end the block.
    fence = "```"
    while fence in record:
        fence += "`"
    return (
        f"## Record\n\nDigest of the rater: `{checkpoint.digest}`\n\n<details>\n<summary>Config, "
        f"data and versions</summary>\n\n{fence}json\n{record}\n{fence}\n\n</details>"
    )


def _table(rows: dict[str, Any]) -> str:
    lines = [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _cell(value: Any) -> str:
    """Returns a value as the text of a table's cell."""
    text = " ".join(str(value).split())
    for character in ("\\", "|", "`", "[", "]"):  # of markup, the backslash first
        text = text.replace(character, f"\\{character}")
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"
