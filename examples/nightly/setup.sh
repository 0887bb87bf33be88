#!/bin/sh
# Prepares a folder for nightly batches: copies the rater and the config, and scores a sample as the
# reference.
#
#   examples/nightly/setup.sh FOLDER RATER 'SAMPLE_GLOB'
#   examples/nightly/setup.sh nightly demo_output/rater 'demo_output/corpus/*.jsonl.gz'
set -eu
folder=$1 rater=$2 sample=$3

mkdir -p "${folder}/crawl"
cp "$(dirname "$0")/batch.yaml" "${folder}/batch.yaml"
cp -R "${rater}" "${folder}/rater"

# The sample's scores set the cutoff, and drift is measured against them.
datarater score --input "${sample}" --rater "${folder}/rater" --output "${folder}/reference"
