#!/usr/bin/env bash
# One GPU, or none: from a recipe to a distilled and measured data set.
#   launch/one-gpu.sh RECIPE [KEY=VALUE …] [--to USER/NAME]
#   launch/one-gpu.sh imagenet256 data.root=/data/imagenet
# Fetches the prior, rehearses, distils, evaluates, and pushes if --to says where to. The same line resumes what was stopped.
set -euo pipefail
here=$(dirname "$0")
# shellcheck source=launch/steps.sh
. "$here/steps.sh"
find_ld3m "$here/.."
start() { ld3m "$@"; }

all_steps "$@"
