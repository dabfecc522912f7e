#!/usr/bin/env bash
# Makes .venv beside this folder and installs ld3m into it: launch/install.sh [EXTRA,…]
# Without an NVIDIA GPU, PyTorch comes as its CPU build, which spares several GB. VENV names another folder, PYTHON another
# interpreter. `launch/install.sh --torch` ends once PyTorch is in.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
if ! "$venv/bin/python" -c "import torch" 2>/dev/null; then
  if [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null; then
    # The local part +cpu picks the CPU build: from PyTorch's index, or wherever pip is set up to look.
    "$venv/bin/pip" install --quiet --retries 0 "torch==2.13.0+cpu" --extra-index-url https://download.pytorch.org/whl/cpu
  else
    "$venv/bin/pip" install --quiet torch
  fi
fi
[ "${1:-}" = --torch ] || "$venv/bin/pip" install --quiet --editable ".[${1:-report}]"
