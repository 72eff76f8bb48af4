#!/bin/sh
# Starts the whole service on this machine: API, workers, Flower and, where nothing answers at the configured
# address, a Redis and an SMTP inbox. Needs nothing but Python 3.11. Ctrl-C stops it; the data stays in .run/.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

usage="usage: ./start.sh [--demo]"
case $#:${1:-} in
    0: | 1:--demo) ;;
    1:--help | 1:-h)
        cat <<END
$usage

Starts the whole service on this machine: the HTTP API, the workers, Flower and,
where nothing answers at the configured address, a Redis and an SMTP inbox.
Ctrl-C stops it. Needs Python 3.11 or newer; the first start also needs a
network: it installs into .venv and writes backend/.env.

  --demo   also send one mail of each kind, and show what became of them
  --help   show this

Settings come from the environment and from backend/.env;
backend/.env.example explains each.
END
        exit
        ;;
    *)
        printf '%s\n' "start.sh does not take: $*" "$usage" >&2
        exit 2
        ;;
esac

. "$root/deploy/venv.sh"
cd "$root/backend"
run_in_venv requirements-local.txt -m dev.stack "$@"
