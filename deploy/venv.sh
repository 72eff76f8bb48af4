# Sourced by the start scripts, which set $root to the checkout: which Python runs what.
# shellcheck shell=sh disable=SC2034,SC2154

# run_in_venv REQUIREMENTS ARGS...: make .venv hold backend/REQUIREMENTS, then become its python ARGS.
run_in_venv() {
    for candidate in python3 python3.13 python3.12 python3.11; do
        # Asking it, not `command -v`: a version manager's shim may be there without the version behind it.
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            exec "$candidate" "$root/deploy/bootstrap.py" "$@"
        fi
    done
    found=$(python3 --version 2>/dev/null) || found="no python3"
    echo "This needs Python 3.11 or newer on the PATH; found $found. On Debian and Ubuntu: apt-get install python3-venv" >&2
    exit 1
}

# find_python: set $python to the one that has the service's packages: the active virtualenv, else .venv,
# else the one on the PATH (a container's).
find_python() {
    if [ -n "${VIRTUAL_ENV:-}" ] && [ -x "$VIRTUAL_ENV/bin/celery" ]; then
        python=$VIRTUAL_ENV/bin/python
    elif [ -x "$root/.venv/bin/python" ]; then
        python=$root/.venv/bin/python
    else
        python=python3
        if ! python3 -c 'import celery' 2>/dev/null; then
            echo "The service's packages are not installed. Run ./start.sh once, or: python3 -m venv .venv &&" \
                ".venv/bin/pip install -r backend/requirements.txt -c backend/constraints.txt" >&2
            exit 1
        fi
    fi
}
