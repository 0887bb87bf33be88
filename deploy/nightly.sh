#!/bin/sh
# Runs datarater-batch for the day that has just ended (UTC): what a schedule starts that knows no date.
#
#   datarater-nightly --config gs://bucket/batch.yaml [more flags of datarater-batch and Beam]
#   AS_OF=2026-01-31 datarater-nightly --config gs://bucket/batch.yaml     # another date, by hand
#
# A try after midnight is for the next day, which loses nothing: every batch first finishes the unfinished ones.
set -eu
as_of=${AS_OF:-$(date -u -d yesterday +%Y-%m-%d)}
# In this process's place, so that signals reach it.
exec datarater-batch --as_of "${as_of}" "$@"
