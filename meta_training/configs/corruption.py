"""Settings of the experiment; see the benchmark of the same name in tests/benchmarks."""

from ml_collections import ConfigDict

from meta_training.configs import default


def get_config() -> ConfigDict:
    """Returns the corruption experiment's config."""
    config = default.get_config()
    config.meta_steps = 60
    config.length = 128
    config.data.windows = "document"
    config.data.inner = "corruption_output/pool/*.jsonl.gz"
    config.data.outer = "corruption_output/target/*.jsonl.gz"
    config.export_every = 10
    config.export.reference_documents = 256
    return config
