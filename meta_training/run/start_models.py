"""Models of Hugging Face that a run starts from: the rater's encoder, and the inner models.

    WORKDIR/models/ROLE-DIGEST/   a copy of each; DIGEST is of its path

A resumed run reads its copies, so the models themselves may be gone, or have changed. What a config
says of a model's shape is taken from the model, unless the config has other values than the default
ones, which are refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from datarater.meta_training.configs import default
from datarater.meta_training.errors import ConfigError
from datarater.rater_model.atomic_files import write_json
from datarater.rater_model.file_tokenizer import FileTokenizer
from datarater.rater_model.hugging_face.errors import HuggingFaceError
from datarater.rater_model.hugging_face.model_folder import ModelFolder, is_model
from datarater.rater_model.hugging_face.shapes import ModelShape, shape_of
from datarater.rater_model.hugging_face.weights import stack_params
from datarater.rater_model.rater import Params

RATER: Literal["rater"] = "rater"
INNER_MODEL: Literal["inner_model"] = "inner_model"
_ROLES = (RATER, INNER_MODEL)
_SOURCE_FILE = "source.json"  # written last into a copy
_SHAPE_FIELDS = (
    "width",
    "heads",
    "mlp_width",
    "layers",
    "head_width",
    "key_value_heads",
    "rotary_base",
    "rotary_scaling",
    "norm_epsilon",
)


@dataclasses.dataclass(frozen=True)
class StartModel:
    """A model that a run starts from.

    Attributes:
        role: Field of the section `start` that names it.
        folder: Its files.
        shape: Its shape.
        tokenizer: Its tokenizer.
        source: What raters record of it: its path and the digest of its files; empty until there is
            a copy.
    """

    role: Literal["rater", "inner_model"]
    folder: ModelFolder
    shape: ModelShape
    tokenizer: FileTokenizer
    source: dict[str, str]

    def params(self) -> Params:
        """Returns the parameters of the embedding, the blocks and an inner model's readout.

        The embedding has as many rows as the tokenizer has ids: the others never occur.

        Raises:
            ConfigError: The weights do not have the shape of `config.json`.
            OSError: A file cannot be read.
        """
        try:
            params = stack_params(
                self.folder.weights(), self.shape, self.folder.path, self.role == INNER_MODEL
            )
        except HuggingFaceError as error:
            raise ConfigError(f"start.{self.role}: {error}") from error
        rows = self.tokenizer.vocabulary_size
        params["token_embedding"]["embedding"] = params["token_embedding"]["embedding"][:rows]
        if "readout" in params:
            params["readout"]["kernel"] = params["readout"]["kernel"][:, :rows]
        return params


Models = dict[str, StartModel]  # by their roles


def start_models(config: ConfigDict, copies: Path) -> Models:
    """Opens the models that a config names, or their copies in the workdir.

    Args:
        config: The whole config.
        copies: Folder of the copies.

    Raises:
        ConfigError: A model cannot be used; the message names its field and what does not fit.
        OSError: A file cannot be read.
    """
    models: Models = {}
    for role in _ROLES:
        path = config.start[role]
        copy = _copy(copies, role, path)
        source = copy / _SOURCE_FILE
        if not path or (role == RATER and not source.exists() and not is_model(path)):
            continue  # a rater checkpoint is read elsewhere

        try:
            folder = ModelFolder(str(copy) if source.exists() else path)
            shape = shape_of(folder.config, path, "causal" if role == INNER_MODEL else "any")
            models[role] = StartModel(
                role,
                folder,
                shape,
                folder.tokenizer(),
                json.loads(source.read_text()) if source.exists() else {},
            )
        except HuggingFaceError as error:
            raise ConfigError(f"start.{role}: {error}") from error
    for model in models.values():
        _check_tokens(model, config)
    if len(models) == 2:
        _check_same_tokens(models)
    return models


def fill_config(config: ConfigDict, models: Models) -> ConfigDict:
    """Returns the config with the shapes and the tokenizer of the models that a run starts from.

    Args:
        config: The whole config.
        models: Models of the start.

    Raises:
        ConfigError: The config has other values than the defaults and the model; the message names
            the fields.
    """
    if not models:
        return config
    filled = config.copy_and_resolve_references()
    usual = default.get_config()
    differing = []

    def fill(section: str, field: str, value: Any) -> None:
        asked = config[section][field]
        if asked not in (value, usual[section][field]):
            differing.append(f"{section}.{field} is {asked!r}, but the model has {value!r}")
        filled[section][field] = value

    for role, model in models.items():
        for field in _SHAPE_FIELDS:
            fill(role, field, getattr(model.shape.transformer, field))
        if role == INNER_MODEL:
            fill(role, "tied_embeddings", model.shape.tied_embeddings)
    fill("tokenizer", "kind", FileTokenizer.kind)
    if differing:
        raise ConfigError(
            f"{'; '.join(differing)}: leave these fields out, since a run takes the shape of the "
            "model it starts from"
        )
    return filled


def copy_models(models: Models, copies: Path, config: ConfigDict) -> None:
    """Copies models into a folder, unless they are there.

    Args:
        models: Models, as `start_models` opened them.
        copies: Folder of the copies.
        config: The whole config.

    Raises:
        ConfigError: A file of a model is missing, or its weights do not fit; there is no copy then.
        OSError: A file cannot be read or written.
    """
    for role, model in models.items():
        if model.source:
            continue
        copy = _copy(copies, role, config.start[role])
        # Weights that do not fit are refused before the copy counts, for a run reads only the copy.
        try:
            digest = model.folder.copy_to(copy)
            dataclasses.replace(model, folder=ModelFolder(str(copy))).params()
        except (HuggingFaceError, ConfigError) as error:
            shutil.rmtree(copy)
            field = f"start.{role}: "
            message = str(error).removeprefix(field).replace(str(copy), config.start[role])
            raise ConfigError(field + message) from error
        write_json(copy / _SOURCE_FILE, {"path": config.start[role], "sha256": digest})


def _copy(copies: Path, role: str, path: str) -> Path:
    return copies / f"{role}-{hashlib.sha256(path.encode()).hexdigest()[:12]}"


def _check_tokens(model: StartModel, config: ConfigDict) -> None:
    """Refuses a tokenizer with more ids than the model, and windows longer than its texts."""
    ids, rows = model.tokenizer.vocabulary_size, model.shape.vocabulary_size
    path = config.start[model.role]
    if ids > rows:
        raise ConfigError(
            f"start.{model.role}: the tokenizer of {path} has {ids:,} ids, but its embedding only "
            f"{rows:,} rows"
        )
    if config.length > model.shape.length:
        raise ConfigError(
            f"start.{model.role}: {path} was trained for texts of {model.shape.length:,} tokens; "
            f"length is {config.length:,}"
        )


def _check_same_tokens(models: Models) -> None:
    rater, inner = models[RATER].tokenizer, models[INNER_MODEL].tokenizer
    if rater.serialise() != inner.serialise():
        raise ConfigError(
            f"start.rater and start.inner_model have different tokenizers "
            f"({models[RATER].folder.path} and {models[INNER_MODEL].folder.path}), but a run has "
            "one: give models with the same tokenizer.json and special tokens"
        )


def params_copy(params: Params) -> Params:
    """Returns a copy on the device, which may be donated."""
    return cast(Params, jax.tree.map(lambda x: jnp.array(np.asarray(x)), params))
