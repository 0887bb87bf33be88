"""`datarater select`: keeps the best part of a scored corpus without scoring it again."""

from __future__ import annotations

import sys

from datarater.pipelines.commands.graph_command import GraphCommand

COMMAND = "datarater select"
_command = GraphCommand(
    COMMAND,
    "Keeps the best part of a corpus that `datarater score` or `datarater curate` scored.",
    "--output run --keep_fraction 0.1",
    selects=True,
)
make_parser, run, main = _command.make_parser, _command.run, _command.main

if __name__ == "__main__":
    sys.exit(main())
