#!/bin/sh
# Runs `datarater batch` for the day that has just ended (UTC), for schedulers that pass no date.
#
#   datarater-nightly --config gs://bucket/batch.yaml [more flags of datarater batch and Beam]
#   AS_OF=2026-01-31 datarater-nightly --config gs://bucket/batch.yaml     # another date, by hand
#
# A retry after midnight runs for the next day. Nothing is lost: every batch first finishes the
# unfinished ones before it.
set -eu
as_of=${AS_OF:-$(date -u -d yesterday +%Y-%m-%d)}
# Replaces the shell, so that signals reach the command.
exec datarater batch --as_of "${as_of}" "$@"
