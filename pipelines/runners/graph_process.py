"""The program of the process that runs the graph of a supervised local run."""

from __future__ import annotations

import sys

from datarater.pipelines.runners import beam_import


def main() -> None:
    """Runs the graph; the first argument is the file descriptor of the pipe for the report."""
    beam_import.import_beam()
    from datarater.pipelines.runners import local_workers

    local_workers.run_ordered(int(sys.argv[1]))


if __name__ == "__main__":
    main()
