#!/bin/sh
# Runs the tests: ./test.sh [pytest arguments]. Sets .venv up first, as ./start.sh does.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
. "$root/deploy/venv.sh"
cd "$root"
run_in_venv requirements-dev.txt -m pytest "$@"
