#!/usr/bin/env bash
# Several nodes of a Slurm cluster, a process a GPU: sbatch launch/slurm.sh distill my-recipe.yaml prior.source=…
# Whatever comes after the script's name is a command of ld3m. Submit it where .venv is, or activate another first.
#
# Preempted (SIGTERM) or out of time (SIGUSR1, five minutes before), every process saves after its iteration and ends with
# 128 + the signal's number; the job is then queued again and goes on where it stood. Give an iteration less than those
# five minutes and than the partition's GraceTime. A job that fails otherwise stays failed.
#
# For a denoiser that must be sharded over GPUs, let one task a node (--ntasks-per-node=1) run instead
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

# All tasks meet at the first node, at a port that another job there is unlikely to have.
MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000)) OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"

trap : TERM USR1  # this shell lives on until its tasks have saved
# shellcheck disable=SC2016 # each task has its own numbers
srun bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS exec python -m ld3m "$@"' ld3m "$@"
code=$?
case $code in
  138 | 143) scontrol requeue "$SLURM_JOB_ID" ;;
esac
exit "$code"
