"""What several tests share."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The checkout."""


def corpora_folder() -> Path:
    """Returns the folder of corpora: $DATARATER_CORPORA, else shared/corpora beside the checkout.

    It need not exist.
    """
    return Path(os.environ.get("DATARATER_CORPORA", ROOT.parent / "shared" / "corpora"))
