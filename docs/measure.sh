#!/usr/bin/env bash
# Measures everything that the tables and pictures of README.md and RESULTS.md show, and leaves it as JSON in docs/results.
# Run it alone on a quiet machine; it takes less than ten minutes on two cores. Then: python docs/figures.py
#
#   docs/measure.sh DATA BUNDLES [RUNS]
#
# DATA     folder with sst2/dev.tsv and squad/dev.json
# BUNDLES  folder with the trained bundles sst2 and squad
# FORCE=1 measures although others use the machine; scores and depths are right then, and times are not.
# RUNS     folder with the finished runs demo-classification and demo-qa; by default runs, as `make demo` leaves them
set -euo pipefail
data=$(realpath "${1:?the folder of the data}")
bundles=$(realpath "${2:?the folder of the bundles}")
runs=$(realpath "${3:-runs}")
cd "$(dirname "$0")/.."
out=docs/results
if [ -z "${FORCE:-}" ] && awk '{ exit !($1 > 0.7) }' /proc/loadavg; then
    echo "error: the machine is busy (load $(cut -d ' ' -f 1 /proc/loadavg)), so times would be wrong; wait, or set FORCE=1" >&2
    exit 1
fi
python=${PYTHON:-.venv/bin/python}
export PYTHONPATH=$PWD

pocketbert() { "$python" -m pipeline.cli "$@"; }

# One thread: short texts have too little work to share. BERT-base has the same.
pocketbert evaluate "$bundles/sst2" "$data/sst2/dev.tsv" --speed 0,exact,balanced,fast --threads 1 --json > "$out/sst2-evaluate.json"
pocketbert bench "$bundles/sst2" --lengths 16,32,64,128 --threads 1 --json "$out/sst2-bench.json"
pocketbert evaluate "$bundles/squad" "$data/squad/dev.json" --limit 1000 --speed 0,exact,balanced,fast --threads 1 --json \
    > "$out/squad-evaluate.json"
for name in sst2 squad; do
    pocketbert size "$bundles/$name" --json > "$out/$name-size.json"
    "$python" docs/measurements.py promises "$name" "$bundles/$name"
done
for name in demo-classification demo-qa; do
    "$python" docs/measurements.py run "$runs/$name"
done
