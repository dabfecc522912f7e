#!/usr/bin/env bash
# pytest with one process of tests per core, in the environment that is active; arguments go to it. What fails is run once
# more, one test after another: a machine with too much to do fails tests that wait for something.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1
unset PYTHONDONTWRITEBYTECODE # uv compiles nothing: each of the tests' processes would compile all that it imports
pytest -n auto --dist loadfile --no-loadscope-reorder "$@" && exit
status=$?
[ "$status" = 1 ] || exit "$status"
echo "once more, what failed:"
pytest --last-failed --last-failed-no-failures none "$@"
