"""Builds TensorFlow datasets offline, without TensorFlow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds


def build_dataset(
    folder: Path, splits: Mapping[str, Sequence[str | bytes]], name: str = "tiny"
) -> None:
    """Writes a dataset of texts where `tfds.builder(name, data_dir=folder)` finds it.

    Args:
        folder: Folder of prepared datasets.
        splits: Texts of each split.
        name: Name of the dataset.
    """

    def info(self: Any) -> tfds.core.DatasetInfo:
        features = {"text": tfds.features.Text(), "metadata": {"title": tfds.features.Text()}}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def examples(texts: Sequence[str | bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, text in enumerate(texts):
            yield index, {"text": text, "metadata": {"title": "a title"}}

    # The builder is not registered under its name, so that readers see only the files, as for a
    # dataset built elsewhere.
    with tfds.core.registered.skip_registration():
        builder_class = type(
            name.title(),
            (tfds.core.GeneratorBasedBuilder,),
            {
                "VERSION": tfds.core.Version("1.0.0"),
                "name": name,
                "_info": info,
                "_split_generators": lambda self, manager: {
                    split: examples(texts) for split, texts in splits.items()
                },
                "_generate_examples": lambda self: iter(()),
            },
        )

    builder = builder_class(data_dir=folder, file_format="array_record")
    tfds.display_progress_bar(False)
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
