#!/usr/bin/env bash
# Several nodes of a Slurm cluster, one process per GPU. On the login node, from the checkout:
#   launch/slurm.sh RECIPE [KEY=VALUE …] [--to USER/NAME]     all of it: fetches the prior here, where there is a network, and
#                                                             queues rehearsal, distillation, evaluation and push
#   sbatch launch/slurm.sh distill my-recipe.yaml             one command of ld3m alone
# sbatch's own options: those below, and variables such as SBATCH_ACCOUNT, SBATCH_PARTITION and SBATCH_TIMELIMIT.
#
# When a job is preempted (SIGTERM) or runs out of time (SIGUSR1, five minutes before), every process saves after its
# iteration and exits with 128 + the signal's number; the job is then requeued and resumes. An iteration must take less than
# those five minutes and than the partition's GraceTime. A job that fails for another reason stays failed, and those that
# wait for it never start.
#
# For a denoiser that must be sharded over GPUs, run one task per node (--ntasks-per-node=1) with
#   ld3m launch --config_file launch/zero3.yaml --num_machines "$SLURM_NNODES" --machine_rank "$SLURM_NODEID" \
#     --num_processes … --main_process_ip "$MASTER_ADDR" --main_process_port "$MASTER_PORT" "$@"
#SBATCH --job-name=ld3m
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail
# shellcheck source=/dev/null
[ -f .venv/bin/activate ] && . .venv/bin/activate

if [ -z "${SLURM_JOB_ID:-}" ]; then # on the login node
  set -e
  # shellcheck source=launch/steps.sh
  . "$(dirname "$0")/steps.sh"
  find_ld3m .
  options=()
  start() { # each job once the one before has ended well
    local job
    job=$(sbatch --parsable "${options[@]}" "$0" "$@")
    echo "job ${job%%;*}: ld3m $*"
    options=(--dependency="afterok:${job%%;*}" --kill-on-invalid-dep=yes)
  }
  share() { options+=(--nodes=1 --ntasks-per-node=1 --gpus-per-node=1) && start "$@"; }
  all_steps "$@"
  exit
fi

# All tasks connect to the first node, at a port that no other job there is likely to use.
MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000)) OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
# What several processes have to say of a failure is said once: each looks here whether it was.
said=$(mktemp -d "$PWD/.ld3m-$SLURM_JOB_ID-XXXX")
trap 'rm -rf "$said"' EXIT
export said

trap : TERM USR1  # this shell keeps running until its tasks have saved
# shellcheck disable=SC2016 # each task has its own numbers
srun bash -c 'mkdir -p "$said/$SLURM_PROCID" && export TORCHELASTIC_ERROR_FILE="$said/$SLURM_PROCID/error.json"
RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS exec python -m ld3m "$@"' ld3m "$@"
code=$?
case $code in
  138 | 143) scontrol requeue "$SLURM_JOB_ID" ;;
esac
exit "$code"
