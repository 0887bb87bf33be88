#!/bin/sh
# Curates the files of the day that has ended (UTC). Every file lands in exactly one batch, so it is
# safe to run this again at any time.
#
#   examples/nightly/nightly.sh FOLDER              # FOLDER was prepared by setup.sh
#   examples/nightly/nightly.sh FOLDER 2026-01-31   # another date
#
# In crontab, at 02:00:
#
#   0 2 * * *  /path/to/examples/nightly/nightly.sh /data/nightly >> /data/nightly/log 2>&1
#
# Exit code 4 is an alarm: the data drifted, or too many records were rejected. All codes are in
# docs/troubleshooting.md.
set -eu
folder=$1
date=${2:-$(date -u -d yesterday +%Y-%m-%d)}

exec datarater batch --config "${folder}/batch.yaml" --as_of "${date}"
