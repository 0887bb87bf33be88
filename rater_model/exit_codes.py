"""Defines the exit codes, which mean the same in every command.

The codes above 63 are those of `sysexits.h` for the same cause.
"""

from __future__ import annotations

DONE = 0
FAILED = 1
WRONG_USAGE = 2
OTHER_RUN = 3
PAST_LIMIT = 4
BAD_SPLITS = 5
EMPTY_CORPUS = 65
NO_INPUT = 66
DISK_FULL = 73
UNREADABLE_INPUT = 74
STOPPED = 75
NO_PERMISSION = 77

EXIT_CODES = {
    DONE: "done",
    FAILED: "failed",
    WRONG_USAGE: "wrong usage",
    OTHER_RUN: "the folder or selection belongs to another run, an input was modified, or another "
    "launch is working in it",
    PAST_LIMIT: "past a limit: drift, rejected records, or too few documents",
    BAD_SPLITS: "done, but files or splits were rejected whole, as --on_bad_split reject asks",
    EMPTY_CORPUS: "the input has no records, or none that could be scored",
    NO_INPUT: "no file matches the input's paths and globs",
    DISK_FULL: "the disk of the run folder is full",
    UNREADABLE_INPUT: "an input file cannot be read",
    STOPPED: "stopped by a signal: run the same command to continue",
    NO_PERMISSION: "no permission to read an input or to write the run folder",
}
"""Meaning of each exit code."""
