#!/usr/bin/env bash
# From a fresh clone to a distilled data set and its accuracy, in minutes, on a laptop's CPU.
set -euo pipefail
cd "$(dirname "$0")/.."
./launch/install.sh report
. .venv/bin/activate
# Accelerate gives a single process one thread unless told otherwise.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(getconf _NPROCESSORS_ONLN)}" OMP_WAIT_POLICY=PASSIVE
accelerate launch -m ld3m distill recipes/quickstart.yaml
ld3m evaluate --arch convnet,resnet18 --against random
echo "The pictures are in runs/quickstart/grid.png and runs/quickstart/images/"
