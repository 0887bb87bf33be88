import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Read when gcsfs is imported: otherwise it asks a service that no test may reach what kind each
# bucket is.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")

# On a busy machine any example, and any drawing of one, can take long: speed is not what these
# tests are about.
settings.register_profile(
    "busy_machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("busy_machine")


@pytest.fixture(scope="session")
def corpora() -> Path:
    """The folder of test corpora: $DATARATER_CORPORA, else shared/corpora beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "corpora"
    folder = Path(os.environ.get("DATARATER_CORPORA", beside))
    if not folder.is_dir():
        pytest.skip(f"no corpora at {folder}; set DATARATER_CORPORA to the folder that holds them")
    return folder
