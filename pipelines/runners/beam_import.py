"""Imports Beam without the optional libraries that a run on this machine does not use.

Where they are installed, Beam imports pandas, the clients of BigQuery, Pub/Sub, Dataflow, Cloud
Storage and S3, MongoDB's and, through them, IPython: more than half of the time and of the memory
of importing Beam, in every process. This package reads and writes by fsspec and pyarrow.

Call `import_beam` before Beam is imported, in a process whose every module is ours: in the commands
and workers of a local run, but not in a library that somebody's own pipeline imports.
"""

from __future__ import annotations

import argparse
import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Sequence

UNUSED = frozenset(
    {
        "apache_beam.io.aws.s3filesystem",
        "apache_beam.io.azure.blobstoragefilesystem",
        "apache_beam.io.gcp.bigquery",
        "apache_beam.io.gcp.gcsfilesystem",
        "apache_beam.io.hadoopfilesystem",
        "apitools",
        "google.cloud.dataflow",
        "pandas",
        "pymongo",
    }
)
"""Modules whose import Beam tries and does without if it fails."""


_MEANS_LOCAL = ("directrunner", "direct", "fnapirunner", "fnapi")


def named_runner(beam_args: Sequence[str]) -> str | None:
    """Returns the value of `--runner` among the flags for Beam; None if it is not given."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--runner")
    runner: str | None = finder.parse_known_args(list(beam_args))[0].runner
    return runner


def is_local(runner: str) -> bool:
    """Returns whether the name of a runner means Beam's local runner."""
    return runner.lower() in _MEANS_LOCAL


class _Hidden(importlib.abc.MetaPathFinder):
    """Finds none of the unused modules, as if they were not installed."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: types.ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        """Refuses the unused modules, and leaves all others to the next finder."""
        if fullname in UNUSED:
            raise ModuleNotFoundError(f"{fullname} is not imported with Beam", name=fullname)
        return None


def import_beam(beam_args: Sequence[str] = ()) -> None:
    """Imports Beam without the modules of `UNUSED`; another runner than the local one has them.

    Does nothing where Beam is imported already. Afterwards the modules can be imported again, but
    not IPython. pyarrow, which looks for pandas once, still finds it: timestamps of nanoseconds
    are pandas's where it is installed, and keys are made of them.

    Args:
        beam_args: Flags for Beam, which may name a runner.
    """
    named = named_runner(beam_args)
    if "apache_beam" in sys.modules or (named is not None and not is_local(named)):
        return

    hidden = _Hidden()
    sys.meta_path.insert(0, hidden)
    try:
        import apache_beam  # noqa: F401
    finally:
        sys.meta_path.remove(hidden)
    # Beam asks IPython for each step of a graph whether it runs in a notebook.
    sys.modules.setdefault("IPython", None)  # type: ignore[arg-type]
