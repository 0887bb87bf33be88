r"""The demo: intact prose against damaged copies of it, on the built-in corpus.

    datarater train --config=demo --workdir=demo_output/train

`datarater demo` writes the corpus to `demo_output/`, runs this command, and curates the corpus with
the rater. Time: a few minutes on 2 cores. Expected result: the table at the end of the demo, where
the trained rater ranks intact prose above damaged prose and the untrained one does not.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from datarater.meta_training.configs import default


def get_config() -> ConfigDict:
    """Returns the demo's config."""
    config = default.get_config()
    config.meta_steps = 30
    config.length = 128
    config.population.warmup_steps = 150
    config.data.windows = "document"
    config.data.inner = "demo_output/corpus/*.jsonl.gz"
    config.data.outer = "demo_output/heldout/*.jsonl.gz"
    config.export_every = 15
    config.export.reference_documents = 256
    return config
