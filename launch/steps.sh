#!/usr/bin/env bash
# The steps from a recipe to a data set on the Hub, for launch/one-gpu.sh, eight-gpus.sh and slurm.sh, which source this and
# define `start`: it starts a command of ld3m on the machine. What is done is skipped, so that the same line resumes.

# all_steps RECIPE [KEY=VALUE …] [--to USER/NAME]
all_steps() {
  read_arguments "$@"
  get_prior
  rehearse
  distil
  evaluate
  push
}

# The program: that of the environment that is active, or of .venv in a folder.
find_ld3m() {
  command -v ld3m > /dev/null && return
  # shellcheck source=/dev/null
  [ -f "$1/.venv/bin/activate" ] && . "$1/.venv/bin/activate" && return
  mistake "ld3m is not installed; run launch/install.sh"
}

mistake() { echo "ld3m: $*" >&2 && exit 2; }

step() { echo "— $*" >&2; }

# Sets recipe, to, source (of the prior) and run (its folder).
read_arguments() {
  recipe=() to=""
  while (($#)); do
    case $1 in
      --to)
        to=${2:-}
        [ -n "$to" ] || mistake "--to: give USER/NAME"
        shift 2
        ;;
      -*) mistake "$1: give RECIPE [KEY=VALUE …] [--to USER/NAME]" ;;
      *) recipe+=("$1") && shift ;;
    esac
  done
  ((${#recipe[@]})) || mistake "give RECIPE [KEY=VALUE …] [--to USER/NAME]"
  local resolved
  resolved=$(ld3m distill "${recipe[@]}" --dry-run)
  { read -r source && read -r run; } < <(python -c '
import sys, yaml

recipe = yaml.safe_load(sys.stdin)
print(recipe["prior"]["source"], recipe["output"] or "runs/" + recipe["name"], sep="\n")' <<< "$resolved")
}

# Fetches a prior that is known by its name; others are folders, or come from the Hub with the run.
get_prior() {
  case $source in
    */* | hub:* | pixels) ;;
    *) [ -d "$source" ] || { step "prior $source" && ld3m priors get "$source" > /dev/null; } ;;
  esac
}

# Tries all that follows on a small scale, unless the run has begun.
rehearse() { [ -d "$run" ] || { step rehearsal && start distill "${recipe[@]}" --rehearse; }; }

distil() { step "distillation, $run" && start distill "${recipe[@]}"; }

# By the recipe's protocol, and as many random real images.
evaluate() { step evaluation && start evaluate "$run" --against random; }

# Nothing leaves the machine unless --to says where to.
push() {
  if [ -n "$to" ]; then
    step "push to $to" && share push-to-hub "$run" --to "$to"
  else
    step "not pushed; to share it: ld3m push-to-hub $run --to USER/NAME"
  fi
}

share() { ld3m "$@"; }
