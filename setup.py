"""The `datarater` distribution: what is installed where.

A Beam worker installs the base requirements alone: Beam, JAX and what reading, scoring and writing
documents needs. Meta-training, Google Cloud and development each add an extra.
"""

import re
from pathlib import Path

from setuptools import setup

VERSION = re.search(r'__version__ = "(.+)"', Path("rater_model/__init__.py").read_text())[1]

SCORING = [
    "absl-py>=2.1",
    "apache-beam>=2.62",
    "flax>=0.10,<0.13",
    "fsspec>=2024.12",
    "google-crc32c>=1.5",
    "jax>=0.6,<0.11",
    "numpy>=1.26",
    "orjson>=3.9.7",
    "pyarrow>=16",
    "rich>=13",
    "safetensors>=0.4.5",
    "tokenizers>=0.20",
    "zstandard>=0.22",
]

TRAIN = [
    "grain>=0.2.3",
    "ml-collections>=1.0",
    "optax>=0.2.4",
    "orbax-checkpoint>=0.11",
    "tensorboardX>=2.6.2",
    "tensorflow-datasets>=4.9.7",
]

GCP = [
    "apache-beam[gcp]>=2.62",
    "gcsfs>=2024.12",
]

# For benchmarks that stand beside other tools; nothing else needs them.
BENCHMARK = [
    "datasketches>=5",
    "datatrove>=0.4",
]

YAML = [
    "apache-beam[yaml]>=2.62",
]

DEV = [
    *YAML,
    "hypothesis>=6.100",
    "mypy>=1.11",
    "pytest>=8.0",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "ruff>=0.6",
    "scipy>=1.13",
]

setup(
    name="datarater",
    version=VERSION,
    description="Meta-learn what training data is worth, and curate web-scale corpora with it.",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=["rater_model", "meta_training", "meta_training.configs", "pipelines"],
    package_data={
        "rater_model": ["py.typed"],
        "meta_training": ["py.typed"],
        "pipelines": ["py.typed", "providers.yaml"],
    },
    install_requires=SCORING,
    extras_require={"train": TRAIN, "gcp": GCP, "yaml": YAML, "dev": DEV, "benchmark": BENCHMARK},
    entry_points={
        "console_scripts": [
            "datarater-train = meta_training.train:run",
            "datarater-score = pipelines.score:main",
            "datarater-select = pipelines.select:main",
            "datarater-curate = pipelines.curate:main",
            "datarater-status = pipelines.status:main",
        ]
    },
)
