#!/usr/bin/env bash
# The published results anew, or those named: launch/results.sh [NAME…], such as launch/results.sh steps starts
# Each is an ablation in ablations/NAME, whose table and chart go to recipes/results and into the pages. Interrupted, the
# same command goes on. Needs full Fashion-MNIST; RUN="accelerate launch --config_file launch/cpu2.yaml -m ld3m" deals the
# work to two processes.
set -euo pipefail
cd "$(dirname "$0")/.."
./launch/install.sh report
. .venv/bin/activate
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
seeds=(--axis seed=0,1)

ablate() {
  local name=$1
  shift
  ${RUN:-ld3m} ablate "$@" --output "ablations/$name" >/dev/null
  for kind in json svg; do cp "ablations/$name/ablation.$kind" "recipes/results/$name.$kind"; done
}

baselines() {
  ablate baselines baselines/{random,herding,prototypes,pixels,autoencoder,conditioning,latents,no-skip,reference,paper} \
    "${seeds[@]}" --arch convnet,resnet18
}
steps() { ablate steps baselines/reference --axis prior.steps=5,10,20,40 "${seeds[@]}"; }
starts() { ablate starts baselines/reference --axis distill.init=real,noise "${seeds[@]}"; }
sampling() {
  ablate sampling baselines/reference distill.iterations=0 --axis prior.steps=10,40 \
    --axis prior.skip=none,paper,reference "${seeds[@]}"
}
gradient-norms() { python tests/benchmarks/gradient_norms.py recipes/results/gradient-norms.json; }

(($#)) || set -- baselines steps starts sampling gradient-norms
for name; do $name; done
python tests/results.py
