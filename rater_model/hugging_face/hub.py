"""Uploads raters to the Hugging Face Hub. `load_rater("hf://ORG/NAME")` reads them there."""

from __future__ import annotations

import dataclasses
import errno
import json
import re
from typing import Any

from datarater.rater_model.checkpoint import (
    RECOMMENDATION_FILE,
    checkpoint_files,
    load_rater,
    load_recommendation,
)
from datarater.rater_model.documents.store_errors import in_time, raising_os_errors
from datarater.rater_model.hugging_face.errors import HuggingFaceError
from datarater.rater_model.hugging_face.exporting import transformers_files
from datarater.rater_model.hugging_face.model_card import model_card

_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_LICENSE = re.compile(r"[\w.-]+", re.ASCII)
TRANSFORMERS_FOLDER = "transformers"

# The password of an address, its query (a signed address has its signature there), or a token.
_SECRET = re.compile(r"://[^/\s@]*:[^/\s]*@|https?://[^\s?]*\?[^\s]*=|\bhf_[A-Za-z0-9]{30,}")


def push_to_hub(rater: str, repository: str, license_id: str, *, private: bool = False) -> str:
    """Uploads a rater checkpoint with a model card, in one commit.

    If the rater's shape allows, the folder `transformers/` has it as a model of `transformers`. The
    recommendation and the `transformers` model of a rater that was there before are deleted.

    Args:
        rater: Rater checkpoint, local or any fsspec URL.
        repository: Repository of the Hub, as ORG/NAME; it is created if there is none.
        license_id: License of the rater, as the Hub names it.
        private: Whether a new repository is private.

    Returns:
        The address of the repository.

    Raises:
        HuggingFaceError: The repository or the license is not a name of the Hub, or the rater
            records an address with credentials.
        CheckpointError: The rater cannot be used.
        OSError: The package or the token is missing, access is denied, or the Hub cannot be
            reached; the message says which, and what to do.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise HuggingFaceError(f"--repo: {repository!r} is not a repository as ORG/NAME")
    if not _LICENSE.fullmatch(license_id):
        raise HuggingFaceError(
            f"--license: {license_id!r} is not an identifier such as apache-2.0 or other"
        )
    files = repository_files(rater, repository, license_id)

    url = f"hf://{repository}"
    with raising_os_errors(url):
        import huggingface_hub

        if not huggingface_hub.get_token():
            raise PermissionError(
                errno.EACCES,
                "no token of the Hub: run `hf auth login` or set HF_TOKEN to a token that may "
                "write",
                url,
            )
        api = huggingface_hub.HfApi(library_name="datarater")

        def create() -> Any:
            return api.create_repo(repository, private=private or None, exist_ok=True)

        address = in_time(url, create)
        left = [name for name in api.list_repo_files(repository) if _is_of_rater(name)]
        api.create_commit(
            repository,
            [
                *(
                    huggingface_hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
                    for name, content in files.items()
                ),
                *(
                    huggingface_hub.CommitOperationDelete(path_in_repo=name)
                    for name in left
                    if name not in files
                ),
            ],
            commit_message="Upload a rater",
        )
    return str(address)


def _is_of_rater(name: str) -> bool:
    """Returns whether a file tells of the rater that was uploaded before."""
    return name == RECOMMENDATION_FILE or name.startswith(f"{TRANSFORMERS_FOLDER}/")


def repository_files(rater: str, repository: str, license_id: str) -> dict[str, bytes]:
    """Returns the files of a rater's repository, by their paths in it.

    Args:
        rater: Rater checkpoint.
        repository: Repository, as ORG/NAME.
        license_id: License of the rater.

    Raises:
        HuggingFaceError: The rater records an address with credentials.
        CheckpointError: The rater cannot be used.
        OSError: A file cannot be read.
    """
    checkpoint = load_rater(rater)
    _refuse_secrets(checkpoint.provenance, "provenance", rater)
    recommendation = load_recommendation(rater)
    files = checkpoint_files(checkpoint)
    if recommendation is not None:
        values = json.dumps(dataclasses.asdict(recommendation), indent=2, sort_keys=True)
        files[RECOMMENDATION_FILE] = f"{values}\n".encode()

    try:
        exported = transformers_files(checkpoint)
    except HuggingFaceError:  # a rater of another shape, as the card then does not mention
        exported = {}
    files |= {f"{TRANSFORMERS_FOLDER}/{name}": content for name, content in exported.items()}
    card = model_card(
        checkpoint, repository, license_id, recommendation, TRANSFORMERS_FOLDER if exported else ""
    )
    return {**files, "README.md": card.encode("utf-8")}


def _refuse_secrets(value: Any, field: str, rater: str) -> None:
    """Refuses a record that would publish credentials; the message names the field, not its value.

    Raises:
        HuggingFaceError: A text contains a password, the query of an address or a token.
    """
    if isinstance(value, dict):
        for name, item in value.items():
            _refuse_secrets(name, field, rater)
            _refuse_secrets(item, f"{field}.{name}", rater)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            _refuse_secrets(item, f"{field}[{number}]", rater)
    elif isinstance(value, str) and _SECRET.search(value):
        raise HuggingFaceError(
            f"--rater: {rater}/rater.json has an address with credentials in {field}, which would "
            "become public: load the rater in Python, replace its provenance and save_rater it"
        )
