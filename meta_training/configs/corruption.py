"""Settings of the experiment; see the benchmark of the same name in tests/benchmarks."""

from ml_collections import ConfigDict

from meta_training.configs import default


def get_config() -> ConfigDict:
    """Returns the corruption experiment's config."""
    config = default.get_config()
    config.meta_steps = 50
    config.length = 128
    config.data.windows = "document"
    config.data.inner = "corruption_output/pool/*.jsonl.gz"
    config.data.outer = "corruption_output/target/*.jsonl.gz"
    config.rater.ngram_orders = (2, 3)  # bigrams alone take three times the meta-steps, and order less well
    config.rater.ngram_rows = 16_384
    config.population.warmup_steps = 200
    config.export_every = 50
    config.export.reference_documents = 256
    return config
