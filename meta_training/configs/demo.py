"""The demo: intact prose against damaged copies of it, on the built-in corpus; a few minutes on 2 cores.

python -m datarater.meta_training.demo.demo --output demo_output
"""

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
