#!/usr/bin/env bash
# Checks ld3m with other versions than the usual ones: it distils, evaluates and reports the quickstart's recipe with few
# iterations, and runs the tests of `launch/test.sh fast`, or those of them in the files that follow.
#   launch/versions.sh lowest [PYTHON [FILE…]]  every direct dependency at the minimum that pyproject.toml declares, in
#                                               .venv-lowest
#   launch/versions.sh newest [PYTHON [FILE…]]  what pip takes, in .venv-newest: to check another interpreter than python3
# INSTALL_ONLY=1 ends once the environment is made. PyTorch is launch/install.sh's at both ends: its minimum comes as a CUDA
# build of several GB only.
set -euo pipefail
cd "$(dirname "$0")/.."
end=$1
export PYTHON=${2:-python3} VENV=.venv-$end
if ! [ -e "$VENV/installed" ]; then
  rm -rf "$VENV"
  ./launch/install.sh --torch
  if [ "$end" = lowest ]; then
    "$VENV/bin/pip" install --quiet uv
    # uv keeps what is installed if it satisfies: what PyTorch has brought is to be had again at its minimum.
    direct=$("$VENV/bin/python" - <<'PYTHON'
import re, tomllib

project = tomllib.load(open("pyproject.toml", "rb"))["project"]
lists = [project["dependencies"], *project["optional-dependencies"].values()]
names = {re.match(r"[\w-]+", each)[0] for requirements in lists for each in requirements} - {"torch", "ld3m"}
print(*(f"--reinstall-package {name}" for name in sorted(names)))
PYTHON
)
    # shellcheck disable=SC2086
    "$VENV/bin/uv" pip install --quiet --python "$VENV/bin/python" --resolution lowest-direct $direct --editable ".[dev]"
  else
    ./launch/install.sh dev
  fi
  touch "$VENV/installed"
fi
[ -z "${INSTALL_ONLY:-}" ] || exit 0

. "$VENV/bin/activate"
echo "$end versions on $(python --version):"
python - <<'PYTHON'
import importlib.metadata as metadata, re

names = {re.match(r"[\w-]+", each)[0] for each in metadata.requires("ld3m")} - {"ld3m"}
there = {each.metadata["Name"].lower().replace("_", "-") for each in metadata.distributions()}
print(*(f"{name} {metadata.version(name)}" for name in sorted(names) if name.lower() in there), sep=", ")
PYTHON
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export LD3M_CACHE=$scratch/cache
ld3m --help >/dev/null
accelerate launch --quiet --config_file launch/gpu.yaml -m ld3m distill recipes/quickstart.yaml distill.iterations=3 -o "$scratch/run"
ld3m evaluate "$scratch/run" --arch convnet evaluate.epochs=2 --seeds 2 --against random
ld3m report "$scratch/run" >/dev/null
./launch/pytest.sh -q -m "not slow and not long" "${@:3}"
