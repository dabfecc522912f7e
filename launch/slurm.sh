#!/usr/bin/env bash
# Several nodes of a Slurm cluster, one process per GPU: sbatch launch/slurm.sh distill my-recipe.yaml prior.source=…
# The arguments are a command of ld3m. Submit it from the folder that has .venv, or activate another environment first.
#
# When the job is preempted (SIGTERM) or runs out of time (SIGUSR1, five minutes before), every process saves after its
# iteration and exits with 128 + the signal's number; the job is then requeued and resumes. An iteration must take less than
# those five minutes and than the partition's GraceTime. A job that fails for another reason stays failed.
#
# For a denoiser that must be sharded over GPUs, run one task per node (--ntasks-per-node=1) with
#   accelerate launch --config_file launch/zero3.yaml --num_machines "$SLURM_NNODES" --machine_rank "$SLURM_NODEID" \
#     --num_processes … --main_process_ip "$MASTER_ADDR" --main_process_port "$MASTER_PORT" -m ld3m "$@"
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
[ -f .venv/bin/activate ] && . .venv/bin/activate

# All tasks connect to the first node, at a port that no other job there is likely to use.
MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000)) OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"

trap : TERM USR1  # this shell keeps running until its tasks have saved
# shellcheck disable=SC2016 # each task has its own numbers
srun bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS exec python -m ld3m "$@"' ld3m "$@"
code=$?
case $code in
  138 | 143) scontrol requeue "$SLURM_JOB_ID" ;;
esac
exit "$code"
