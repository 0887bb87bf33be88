"""Settings of the experiment; see the benchmark of the same name in tests/benchmarks."""

from ml_collections import ConfigDict

from meta_training.configs import default


def get_config() -> ConfigDict:
    """Returns the mixed-corpus experiment's config."""
    config = default.get_config()
    config.meta_steps = 60
    config.length = 128
    config.data.inner = "../shared/corpora/dev/*.jsonl.gz"
    config.data.outer = "mixed_corpus_output/outer/*.jsonl.gz"
    config.rater.ngram_orders = (2, 3)
    config.rater.ngram_rows = 16_384
    config.population.warmup_steps = 200
    config.export_every = 20
    config.export.reference_documents = 256
    return config
