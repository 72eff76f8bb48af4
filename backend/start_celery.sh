#!/bin/sh
# The Celery workers.
#   ./start_celery.sh        both nodes, kept alive by supervisor
#   ./start_celery.sh mail   one node in the foreground: the critical and standard lanes
#   ./start_celery.sh bulk   one node in the foreground: the bulk lane
# SIGTERM or Ctrl-C is a warm stop: mails in SMTP are finished first.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
. "$root/deploy/venv.sh"
find_python
cd "$root/backend"

# Gossip and mingle share what the nodes know (revoked ids, clocks) at the price of a second at each start and
# of every node reading every event. The outbox knows it already. Heartbeats stay on: Flower lives on them.
node() {
    exec "$python" -m celery -A celery_app worker -n "$1@%h" -Q "$2" --without-gossip --without-mingle -l INFO
}

case ${1:-} in
    "") exec "$python" "$root/deploy/supervise.py" mail bulk ;;
    mail) node mail critical,standard ;;
    bulk) node bulk bulk ;;
    *)
        echo "usage: ./start_celery.sh [mail|bulk]" >&2
        exit 2
        ;;
esac
