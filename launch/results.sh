#!/usr/bin/env bash
# Measures the published results again, or those named: launch/results.sh [NAME…], such as launch/results.sh steps starts
# Each is an ablation in ablations/NAME, whose JSON goes to recipes/results and its tables into the pages. Interrupt it at any
# time: the same command resumes. Needs full Fashion-MNIST; RUN="ld3m launch --num_processes 2"
# splits the work over two processes.
set -euo pipefail
cd "$(dirname "$0")/.."
./launch/install.sh report,digits
. .venv/bin/activate
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
seeds=(--axis seed=0,1)
five=(--axis seed=0,1,2,3,4)
# Ten images per class are evaluated in smaller steps.
ten_each=(distill.images_per_class=10 evaluate.batch=64 evaluate.epochs=150)
# Other networks than the matching one, at the protocol's learning rates, for 300 epochs or for 600.
other_networks=(evaluate.lr=null evaluate.epochs=300 evaluate.ema=0.98 --arch alexnet,vgg11,vit)
longer=(evaluate.lr=null evaluate.epochs=600 evaluate.ema=0.99 --arch alexnet,vgg11,vit --seeds 1)

ablate() {
  local name=$1
  shift
  ${RUN:-ld3m} ablate "$@" --output "ablations/$name" >/dev/null
  cp "ablations/$name/ablation.json" "recipes/results/$name.json"
}
# Likewise a comparison of sets by one protocol.
compare() {
  local name=$1
  shift
  ${RUN:-ld3m} compare "$@" --output "comparisons/$name" >/dev/null
  cp "comparisons/$name/comparison.json" "recipes/results/$name.json"
}
chart() { cp "ablations/$1/ablation.svg" "recipes/results/$1.svg"; }
# The images of several runs as one picture, one row per run: stack NAME RUN…
stack() {
  python - "$@" <<'END'
import sys
from PIL import Image
name, *runs = sys.argv[1:]
grids = [Image.open(f"{run}/grid.png") for run in runs]
width, height = grids[0].size
picture = Image.new(grids[0].mode, (width, sum(grid.height for grid in grids)))
for row, grid in enumerate(grids):
    picture.paste(grid, (0, row * height))
picture.save(f"recipes/results/{name}.png")
END
}

baselines() {
  ablate baselines baselines/{reference,paper,no-skip,latents,conditioning,autoencoder,pixels,prototypes,herding,random} \
    "${five[@]}" --seeds 5
  chart baselines
}
steps() {
  ablate steps baselines/reference --axis prior.steps=5,10,20,40 "${five[@]}" --seeds 5
  chart steps
}
starts() { ablate starts baselines/reference --axis distill.init=real,noise "${five[@]}" --seeds 5; }
sampling() {
  ablate sampling baselines/reference distill.iterations=0 --axis prior.steps=10,40 \
    --axis prior.skip=none,paper,reference "${five[@]}"
  local folder=ablations/sampling/reference
  stack sampling $folder/prior.skip={none,paper,reference},prior.steps=10,seed=0 \
    $folder/prior.skip={none,paper,reference},prior.steps=40,seed=0
}
architectures() { ablate architectures baselines/{pixels,autoencoder,reference} "${longer[@]}" "${five[@]}"; }
transfer() {
  local networks=(distill.lr_latents=1 "${longer[@]}" "${five[@]}")
  ablate transfer baselines/pixels "${networks[@]}" --axis distill.factor=1,2
  ablate transfer-prior baselines/autoencoder "${networks[@]}" --axis distill.factor=2
  ablate transfer-random baselines/random "${networks[@]}"
}
one() {
  ablate one baselines/pixels distill.dm.match=moments distill.dm.pool=40 distill.real_batch=480 distill.iterations=800 \
    distill.lr_latents=0.5 --axis distill.factor=2,4 "${seeds[@]}" --seeds 5
  ablate one-random baselines/random distill.factor=4 "${seeds[@]}"
}
whole() {
  ablate whole baselines/{pixels,autoencoder,herding,random} "${ten_each[@]}" distill.lr_latents=10 "${seeds[@]}"
  ablate whole-reference baselines/reference "${ten_each[@]}" prior.micro_batch=20 distill.lr_latents=3 \
    distill.lr_conditioning=3 "${seeds[@]}"
}
moments() {
  ablate moments baselines/pixels "${ten_each[@]}" distill.dm.pool=30 distill.real_batch=500 distill.iterations=500 \
    distill.lr_latents=1 --axis distill.dm.match=mean,moments "${seeds[@]}" --seeds 5
}
ten() {
  ablate ten baselines/pixels distill.images_per_class=10 distill.factor=2 distill.init=prototype distill.lr_latents=3 \
    distill.dm.match=moments distill.dm.pool=40 distill.real_batch=500 distill.iterations=600 \
    evaluate.batch=64 evaluate.epochs=300 evaluate.ema=0.985 "${seeds[@]}" --seeds 5 --against random
}
# Sampled, learnt, and sampled first and learnt after, ten images per class.
sampled() {
  local ten=("${ten_each[@]}" distill.lr_latents=10 sample.steps=20 evaluate.lr=0.01 evaluate.ema=0.97 --seeds 1)
  ablate sampled sampling/{mgd3,refined} baselines/{autoencoder,pixels} "${ten[@]}" "${five[@]}"
  ablate sampled-plain sampling/plain "${ten[@]}" "${seeds[@]}" --against random,herding,rded
  chart sampled
}
# Every other method and choice of sampling.
methods() {
  local ten=("${ten_each[@]}" distill.lr_latents=10 sample.steps=20 evaluate.lr=0.01 evaluate.ema=0.97 --seeds 1)
  ablate sampled-methods sampling/{d4m,ddoq,mgd3-ddpm,coda,cgs,k-center,confident,subgroup,moments,d3hr} "${ten[@]}" \
    --axis seed=2
  ablate sampled-igd sampling/igd sample.igd.networks=scorer "${ten[@]}" --axis seed=2
}
# Gradients through some of the denoiser's calls.
pull-backs() {
  ablate pull-backs-exact baselines/reference --axis prior.pull_back=exact "${five[@]}"
  ablate pull-backs baselines/reference --axis prior.pull_back=shortcut --axis prior.differentiated=1,3 "${five[@]}"
  ablate pull-backs-latents baselines/reference distill.learn=latents --axis prior.pull_back=shortcut,exact \
    prior.differentiated=0 "${seeds[@]}"
}
several() { ablate several baselines/{random,autoencoder} distill.factor=2 distill.lr_latents=1 "${five[@]}" --seeds 5; }
cifar10-images() { [ -f data/cifar10/test.parquet ] || python launch/cifar10.py; }
# Fetches CIFAR-10 and trains a prior on it, unless that is done.
cifar10-parts() {
  cifar10-images
  [ -d priors/cifar10 ] || ${RUN:-ld3m} train-prior prior-cifar10 data.source=data/cifar10
}
cifar10() {
  cifar10-parts
  local cifar10=(data.source=data/cifar10 data.channels=3 distill.lr_latents=0.3)
  ablate cifar10 baselines/{pixels,herding,random} "${cifar10[@]}" "${seeds[@]}" --seeds 5
  ablate cifar10-prior baselines/{autoencoder,reference} "${cifar10[@]}" prior.source=priors/cifar10 "${seeds[@]}" --seeds 5
  stack cifar10 ablations/cifar10/pixels/seed=0 ablations/cifar10-prior/{autoencoder,reference}/seed=0
  ablate cifar10-one baselines/pixels data.source=data/cifar10 data.channels=3 distill.dm.match=moments distill.dm.pool=40 \
    distill.real_batch=480 distill.iterations=400 distill.factor=4 distill.lr_latents=0.5 "${seeds[@]}" --seeds 5
  ablate cifar10-random-architectures baselines/random "${cifar10[@]}" "${other_networks[@]}" --axis seed=0,1,2 --seeds 3
  ablate cifar10-architectures baselines/pixels "${cifar10[@]}" "${other_networks[@]}" --axis seed=0,1,2,3,4,5,6 --seeds 3
  ablate cifar10-prior-architectures baselines/{autoencoder,reference} "${cifar10[@]}" "${other_networks[@]}" \
    prior.source=priors/cifar10 --axis seed=0,1,2,3,4,5,6 --seeds 3
  ablate cifar10-long baselines/pixels "${cifar10[@]}" "${longer[@]}" --axis seed=0,1,2
  ablate cifar10-prior-long baselines/autoencoder "${cifar10[@]}" "${longer[@]}" prior.source=priors/cifar10 --axis seed=0,1,2
}
cifar10-mtt() {
  cifar10-parts
  local cifar10=(data.source=data/cifar10 data.channels=3)
  local experts=(experts.count=4 experts.epochs=4 experts.folder=experts/cifar10)
  local mtt=(distill.objective=mtt "${experts[@]}" distill.mtt.step_size=0.02 distill.optimiser=adam distill.iterations=200)
  ${RUN:-ld3m} experts baselines/pixels "${cifar10[@]}" "${experts[@]}" >/dev/null
  ablate cifar10-mtt baselines/pixels "${cifar10[@]}" "${mtt[@]}" "${other_networks[@]}" distill.lr_latents=3 \
    --axis seed=0,1,2,3 --seeds 1
  ablate cifar10-mtt-prior baselines/autoencoder "${cifar10[@]}" "${mtt[@]}" "${other_networks[@]}" distill.lr_latents=0.3 \
    prior.source=priors/cifar10 --axis seed=0,1,2,3 --seeds 1
  stack cifar10-mtt ablations/cifar10-mtt/pixels/seed=0 ablations/cifar10-mtt-prior/autoencoder/seed=0
}
digits() {
  local digits=(data.source=digits data.resolution=8 network.depth=2)
  ablate digits baselines/{reference,paper,no-skip,latents,conditioning,autoencoder,prototypes,herding,random} \
    "${digits[@]}" prior.source=digits "${five[@]}" --seeds 5
  chart digits
  ablate digits-pixels baselines/pixels "${digits[@]}" "${five[@]}" --seeds 5
}
# One distilled set and real images beside it by several protocols, with hard labels and with a teacher's.
by_protocol() {
  local name=$1 set=$2
  shift 2
  local teach=(teacher.arch=convnet teacher.width=32 teacher.epochs=4 "teacher.source=teachers/$name")
  ${RUN:-ld3m} train-teacher baselines/base "$@" "${teach[@]}" >/dev/null
  local how=(--recipe baselines/base "$@" --against random,herding,rded --arch convnet --seeds 3)
  local soft=("evaluate.labels=soft" "teacher.source=teachers/$name")
  compare "$name-glad" "$set" "${how[@]}" --protocol glad evaluate.epochs=300
  compare "$name-minimax" "$set" "${how[@]}" --protocol minimax evaluate.epochs=300
  compare "$name-minimax-soft" "$set" "${how[@]}" --protocol minimax evaluate.epochs=300 "${soft[@]}"
  compare "$name-rd3" "$set" "${how[@]}" --protocol rd3 evaluate.labels=hard
  compare "$name-rd3-soft" "$set" "${how[@]}" --protocol rd3 "${soft[@]}"
}
protocols() {
  local cifar10=(data.source=data/cifar10 data.channels=3)
  cifar10-images
  ${RUN:-ld3m} distill quickstart >/dev/null
  ${RUN:-ld3m} distill baselines/pixels "${cifar10[@]}" -o runs/cifar10-pixels >/dev/null
  by_protocol fashion runs/quickstart
  by_protocol cifar10 runs/cifar10-pixels "${cifar10[@]}"
}
scores() {
  local evaluate="ld3m evaluate runs/scores --arch convnet --seeds 2 --scores evaluate.full_epochs=3"
  ${RUN:-ld3m} distill quickstart -o runs/scores >/dev/null
  $evaluate >/dev/null
  python tests/results.py scores runs/scores "ld3m distill quickstart -o runs/scores; $evaluate"
}
quickstart() (
  unset OMP_NUM_THREADS # as a reader runs it
  ./launch/quickstart.sh
  python tests/results.py quickstart runs/quickstart launch/quickstart.sh
)
precision() {
  local dtype run settings evaluate
  for dtype in float32 bfloat16; do
    run=runs/$dtype
    settings="distill.iterations=15 prior.dtype=$dtype network.dtype=$dtype -o $run"
    evaluate="ld3m evaluate $run --arch convnet --seeds 5 evaluate.epochs=200 evaluate.lr=0.01 evaluate.ema=0.97"
    ${RUN:-ld3m} distill fashion-mnist $settings >/dev/null
    $evaluate >/dev/null
    python tests/results.py $dtype "$run" "ld3m distill fashion-mnist $settings; $evaluate"
  done
}
gradient-norms() { python tests/benchmarks/gradient_norms.py recipes/results/gradient-norms.json; }

(($#)) || set -- quickstart baselines steps starts sampling architectures several one transfer whole moments ten sampled methods pull-backs digits \
  cifar10 cifar10-mtt protocols scores precision gradient-norms
for name; do $name; done
python tests/results.py
