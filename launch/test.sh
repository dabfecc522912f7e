#!/usr/bin/env bash
# Lint, types and tests, a core each, in .venv with the dev extra. Arguments go to pytest: launch/test.sh -m slow
set -euo pipefail
cd "$(dirname "$0")/.."
./launch/install.sh dev
. .venv/bin/activate
export OMP_NUM_THREADS=1
ruff check
ruff format --check
mypy
pytest -n auto --dist loadfile --no-loadscope-reorder --durations=20 "${@:--q}"
