import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def corpora() -> Path:
    """The folder of test corpora: $DATARATER_CORPORA, else shared/corpora beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "corpora"
    folder = Path(os.environ.get("DATARATER_CORPORA", beside))
    if not folder.is_dir():
        pytest.skip(f"no corpora at {folder}; set DATARATER_CORPORA to the folder that holds them")
    return folder
