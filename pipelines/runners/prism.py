"""Options of a run on Prism, Beam's portable local runner, as a process of this machine."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from apache_beam.options.pipeline_options import PipelineOptions

from datarater.pipelines.errors import UsageError
from datarater.pipelines.runners.execution import Execution, is_given

BUILT_PRISM = Path(__file__).resolve().parents[2] / ".prism" / "prism"
"""Path of the binary that `make prism` builds."""


def on_prism(beam_args: Sequence[str], named: str, built: Path = BUILT_PRISM) -> Execution:
    """Returns a run on Prism, a process of this machine; the steps run in this process.

    Args:
        beam_args: Flags for Beam.
        named: Name of the runner, as the user wrote it.
        built: Path of the binary that is used if none is on PATH.

    Raises:
        UsageError: There is no Prism binary. (Beam would try to download one.)
    """
    args = list(beam_args)
    if not is_given(args, "prism_location", "job_endpoint"):
        binary = shutil.which("prism") or (str(built) if built.exists() else None)
        if binary is None:
            raise UsageError(
                f"--runner={named}: Prism's binary is neither on PATH nor at {built}; build "
                "it with `make prism`, give its path with --prism_location, or leave --runner out "
                "to run in this process"
            )
        args.append(f"--prism_location={binary}")
    options = PipelineOptions(args, save_main_session=False)
    return Execution(options, named, local=True, workers=1, beam_args=tuple(beam_args))
