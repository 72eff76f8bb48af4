#!/bin/sh
# Starts the whole service on this machine: API, workers, Flower and, where nothing answers at the configured
# address, a Redis and an SMTP inbox. Needs nothing but Python 3.11. Ctrl-C stops it; the data stays in .run/.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
. "$root/deploy/venv.sh"
cd "$root/backend"
run_in_venv requirements-local.txt -m dev.stack "$@"
