#!/usr/bin/env bash
# Makes .venv beside this folder and installs ld3m into it: launch/install.sh [EXTRA,…]
# Without an NVIDIA GPU, PyTorch comes as its CPU build, which spares several GB. VENV names another folder, PYTHON another
# interpreter, CPU_ONLY=1 fails if there is no CPU build. `launch/install.sh --torch` ends once PyTorch is in.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
if ! "$venv/bin/python" -c "import torch" 2>/dev/null; then
  if [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null; then
    # The CPU build, from wherever pip is set up to find one, or by uv, which knows PyTorch's own index. Else any build.
    "$venv/bin/pip" install --quiet --retries 0 "torch==2.13.0+cpu" 2>/dev/null \
      || { "$venv/bin/pip" install --quiet uv \
        && "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --torch-backend cpu torch 2>/dev/null; } \
      || { [ -z "${CPU_ONLY:-}" ] && "$venv/bin/pip" install --quiet torch; }
  else
    "$venv/bin/pip" install --quiet torch
  fi
fi
[ "${1:-}" = --torch ] && exit
# uv installs several packages at a time; pip does the same one by one.
extras=".[${1:-report}]"
{ "$venv/bin/pip" install --quiet uv && "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --editable "$extras"; } \
  || "$venv/bin/pip" install --quiet --editable "$extras"
# timm brings torchvision, in the package index's build for GPUs, with which a CPU build of PyTorch loads neither it nor diffusers.
loads() { "$venv/bin/python" -W ignore -c "import importlib.util as u; u.find_spec('torchvision') and __import__('torchvision')" 2>/dev/null; }
loads && exit
version=$("$venv/bin/python" -c "from importlib.metadata import version as v; print(v('torchvision').partition('+')[0])")
"$venv/bin/pip" install --quiet --retries 0 --force-reinstall --no-deps "torchvision==$version+cpu" 2>/dev/null \
  || "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --torch-backend cpu --reinstall-package torchvision torchvision 2>/dev/null \
  || true
loads || { "$venv/bin/pip" uninstall --quiet --yes torchvision \
  && echo "no torchvision for this build of PyTorch is to be had here: timm's and torchvision's models cannot be used" >&2; }
