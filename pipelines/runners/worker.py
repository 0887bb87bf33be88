"""The program of a local worker process: Beam's harness with a quiet standard error."""

from __future__ import annotations

import sys

from datarater.pipelines.runners import beam_import, logs


def main() -> None:
    """Runs Beam's worker harness, whose addresses are in the environment."""
    logs.quieten_worker()
    # Beam logs while it is imported.
    beam_import.import_beam()
    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main(sys.argv)


if __name__ == "__main__":
    main()
