"""`datarater curate`: scores a corpus and keeps its best part, in one graph."""

from __future__ import annotations

import sys

from datarater.pipelines.commands.graph_command import GraphCommand

COMMAND = "datarater curate"
_command = GraphCommand(
    COMMAND,
    "Scores every document of a corpus with a rater and keeps exactly the part you ask for.",
    "--input 'crawl/*.jsonl.gz' --rater rater --output run --keep_fraction 0.5",
    scores=True,
    selects=True,
)
make_parser, run, main = _command.make_parser, _command.run, _command.main

if __name__ == "__main__":
    sys.exit(main())
