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
    name=$1 lanes=$2
    shift 2
    exec "$@" "$python" -m celery -A celery_app worker -n "$name@%h" -Q "$lanes" --without-gossip --without-mingle
}

case ${1:-} in
    "") exec "$python" "$root/deploy/supervise.py" mail bulk ;;
    mail) node mail critical,standard ;;
    # A batch to a fast SMTP server takes all the CPU there is; what others need comes first.
    bulk) node bulk bulk nice -n 15 ;;
    *)
        echo "usage: ./start_celery.sh [mail|bulk]" >&2
        exit 2
        ;;
esac
