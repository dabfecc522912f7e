#!/usr/bin/env bash
# The GPUs of one machine, eight unless GPUS says otherwise: from a recipe to a distilled and measured data set.
#   launch/eight-gpus.sh RECIPE [KEY=VALUE …] [--to USER/NAME]
#   GPUS=4 launch/eight-gpus.sh imagenet1k data.root=/data/imagenet
# Fetches the prior, rehearses, distils, evaluates, and pushes if --to says where to. The same line resumes what was stopped.
set -euo pipefail
here=$(dirname "$0")
# shellcheck source=launch/steps.sh
. "$here/steps.sh"
find_ld3m "$here/.."
start() { ld3m launch --num_processes "${GPUS:-8}" "$@"; }

all_steps "$@"
