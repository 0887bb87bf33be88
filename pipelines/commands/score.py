"""`datarater score`: scores a corpus, once, into a run folder."""

from __future__ import annotations

import sys

from datarater.pipelines.commands.graph_command import GraphCommand

COMMAND = "datarater score"
_command = GraphCommand(
    COMMAND,
    "Scores every document of a corpus and commits the scores into a run folder.",
    "--input 'crawl/*.jsonl.gz' --rater rater --output run",
    scores=True,
)
make_parser, run, main = _command.make_parser, _command.run, _command.main

if __name__ == "__main__":
    sys.exit(main())
