#!/usr/bin/env bash
# Lint, types and tests, one process of tests per core, in .venv with the dev extra.
#   launch/test.sh          the whole suite but the tests marked slow, as CI runs it: under 20 minutes on two cores
#   launch/test.sh fast     without the tests marked long either: under 3 minutes; ends with a list of what it left out
#   launch/test.sh -m slow  any other arguments go to pytest
set -euo pipefail
cd "$(dirname "$0")/.."
./launch/install.sh dev
. .venv/bin/activate
[ "${1:-}" != fast ] || set -- -m "not slow and not long" "${@:2}"
ruff check
ruff format --check
mypy
./launch/pytest.sh --durations=20 "${@:--q}"
