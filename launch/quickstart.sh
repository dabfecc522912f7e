#!/usr/bin/env bash
# From a fresh clone to a distilled data set and its accuracy, in minutes, on a laptop's CPU.
set -euo pipefail
cd "$(dirname "$0")/.."
./launch/install.sh report
. .venv/bin/activate
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(getconf _NPROCESSORS_ONLN)}" OMP_WAIT_POLICY=PASSIVE
ld3m distill recipes/quickstart.yaml # one process: a launcher would only start Python and PyTorch once more
# Five ConvNets on the distilled images and five on random real ones; then two ResNet18 of each, which take longer.
ld3m evaluate --against random >/dev/null
ld3m evaluate --arch resnet18 --seeds 2 --against random # prints both
echo "The images are in runs/quickstart/images/, side by side in runs/quickstart/grid.png; ld3m report makes a page of them"
