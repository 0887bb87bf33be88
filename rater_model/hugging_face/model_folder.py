"""Reads the files of a model: its config, its weights in safetensors and its tokenizer.

A model is a folder as `save_pretrained` of `transformers` writes it, on the local disk or behind
any fsspec URL, such as `hf://ORG/NAME` or, at a commit or tag, `hf://ORG/NAME@REVISION`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from datarater.rater_model.checkpoint import RATER_FILE
from datarater.rater_model.documents.files import file_system_of
from datarater.rater_model.documents.store_errors import in_time, raising_os_errors
from datarater.rater_model.file_tokenizer import FileTokenizer
from datarater.rater_model.hugging_face.errors import HuggingFaceError
from datarater.rater_model.tokenizer import TokenizerError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"

_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16}


class ModelFolder:
    """A model in a folder; its config is read at once, everything else when it is asked for.

    Args:
        path: Folder, local or any fsspec URL.

    Attributes:
        path: The same folder.
        config: Content of `config.json`.

    Raises:
        HuggingFaceError: There is no `config.json`, or it is not a model's.
        OSError: The file system fails.
    """

    def __init__(self, path: str) -> None:
        self.path = path.rstrip("/")
        content = in_time(path, lambda: self._content(CONFIG_FILE))
        if content is None:
            raise HuggingFaceError(
                f"{path} is not a model of Hugging Face: there is no {CONFIG_FILE}"
            )
        self.config = self._json(CONFIG_FILE, content)

    def weights(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields the name and the values of each array, file by file.

        Values in bfloat16, which numpy does not have, are yielded as float32.

        Raises:
            HuggingFaceError: There are no safetensors, or they are damaged.
            OSError: The file system fails.
        """
        for name in self.weight_files():
            content = self._content(name)
            if content is None:
                raise HuggingFaceError(f"{self.path} is incomplete: {name} is missing")
            try:
                arrays = safetensors.deserialize(content)
            except safetensors.SafetensorError as error:
                raise HuggingFaceError(f"{self.path}/{name} is damaged: {error}") from error
            for array, view in arrays:
                yield array, self._values(array, view)

    def weight_files(self) -> list[str]:
        """Returns the names of the files with the weights.

        Raises:
            HuggingFaceError: There are none in safetensors, or the index is damaged.
            OSError: The file system fails.
        """
        file_system, folder = file_system_of(self.path)
        with raising_os_errors(self.path):
            if file_system.exists(f"{folder}/{WEIGHTS_FILE}"):
                return [WEIGHTS_FILE]

        index = self._content(INDEX_FILE)
        if index is None:
            raise HuggingFaceError(
                f"{self.path} has neither {WEIGHTS_FILE} nor {INDEX_FILE}; pickled weights are "
                "not read: load the model with transformers and save_pretrained it again"
            )
        try:
            names = set(self._json(INDEX_FILE, index)["weight_map"].values())
        except (KeyError, AttributeError, TypeError) as error:
            raise HuggingFaceError(
                f"{self.path}/{INDEX_FILE} has no weight_map of names of files; download it again"
            ) from error

        # A name with a folder could lie outside the model.
        for name in names:
            if not isinstance(name, str) or name != Path(name).name or name in ("", ".."):
                raise HuggingFaceError(
                    f"{self.path}/{INDEX_FILE} names {name!r}; weight_map may not name files "
                    "outside the folder"
                )
        return sorted(names)

    def tokenizer(self) -> FileTokenizer:
        """Returns the tokenizer of the model.

        The token that ends a text separates documents, and pads if the model has no other one: what
        is padded is masked.

        Raises:
            HuggingFaceError: There is no `tokenizer.json`, it cannot be used, or the model does not
                say which token ends a text.
            OSError: The file system fails.
        """
        content = self._content(TOKENIZER_FILE)
        if content is None:
            raise HuggingFaceError(
                f"{self.path} has no {TOKENIZER_FILE}; load its tokenizer with transformers and "
                "save_pretrained it, which writes one"
            )
        end = _first(self.config.get("eos_token_id"))
        end = _first(self.config.get("sep_token_id")) if end is None else end
        pad = _first(self.config.get("pad_token_id"))
        if end is None:
            raise HuggingFaceError(
                f"{self.path}/{CONFIG_FILE} has no eos_token_id, which separates documents"
            )
        try:
            return FileTokenizer(content, end if pad is None else pad, end)
        except TokenizerError as error:
            raise HuggingFaceError(f"{self.path}: {error}") from error

    def copy_to(self, folder: Path) -> str:
        """Copies the files that are read here into a local folder.

        Args:
            folder: Folder to write; files of the same names there are replaced.

        Returns:
            SHA-256 over the contents of the files.

        Raises:
            HuggingFaceError: A file is missing.
            OSError: A file cannot be read or written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        names = self.weight_files()
        if names != [WEIGHTS_FILE]:
            names = [*names, INDEX_FILE]
        digest = hashlib.sha256()
        for name in (*names, TOKENIZER_FILE, CONFIG_FILE):
            content = self._content(name)
            if content is None:
                raise HuggingFaceError(f"{self.path} is incomplete: {name} is missing")
            digest.update(content)
            (folder / name).write_bytes(content)
        return digest.hexdigest()

    def _content(self, name: str) -> bytes | None:
        """Returns the content of a file; None without one."""
        file_system, folder = file_system_of(self.path)
        try:
            with raising_os_errors(self.path):
                return bytes(file_system.cat_file(f"{folder}/{name}"))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _json(self, name: str, content: bytes) -> dict[str, Any]:
        try:
            values = json.loads(content)
        except ValueError as error:
            raise HuggingFaceError(f"{self.path}/{name} is damaged: it is not JSON") from error
        if not isinstance(values, dict):
            raise HuggingFaceError(f"{self.path}/{name} is not a JSON object")
        return values

    def _values(self, name: str, view: Any) -> np.ndarray:
        """Returns an array of a file, in float32 if numpy does not have its dtype."""
        if view["dtype"] == "BF16":  # the upper half of a float32
            bits = np.frombuffer(view["data"], np.uint16).astype(np.uint32) << 16
            return bits.view(np.float32).reshape(view["shape"])
        if view["dtype"] not in _DTYPES:
            raise HuggingFaceError(
                f"{self.path}: {name} has the dtype {view['dtype']}; quantized weights are not "
                "read: give the model in float32, float16 or bfloat16"
            )
        return np.frombuffer(view["data"], _DTYPES[view["dtype"]]).reshape(view["shape"])


def is_model(path: str) -> bool:
    """Returns whether a folder is a model of Hugging Face, and not a rater checkpoint.

    Raises:
        OSError: The file system fails.
    """

    def look() -> bool:
        file_system, folder = file_system_of(path.rstrip("/"))
        with raising_os_errors(path):
            names = (f"{folder}/{RATER_FILE}", f"{folder}/{CONFIG_FILE}")
            is_rater, is_model = (bool(file_system.exists(name)) for name in names)
        return is_model and not is_rater

    return in_time(path, look)


def _first(value: Any) -> int | None:
    """Returns an id, or the first one of a list of ids."""
    if isinstance(value, list) and value:
        value = value[0]
    return value if isinstance(value, int) else None
