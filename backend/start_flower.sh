#!/bin/sh
# Flower, the view into the Celery workers: http://127.0.0.1:5555 unless FLOWER_ADDRESS and FLOWER_PORT differ.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
. "$root/deploy/venv.sh"
find_python
cd "$root/backend"
exec "$python" "$root/deploy/run_flower.py"
