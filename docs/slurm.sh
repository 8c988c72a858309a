#!/bin/bash
# Trains on the hosts that Slurm gives, and goes on by itself after a time limit, a preemption or a lost host.
# From the root of the checkout, with the environment active in which the programs run:
#
#     sbatch docs/slurm.sh --config=configs/llama2.py:size=1b,method=gaussws --workdir=/shared/runs/1b
#
# What stands below is two hosts with eight GPUs each, one process a GPU; options of sbatch before the script's name
# replace it. docs/clusters.md says more.
#
#SBATCH --job-name=gaussq_jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

# SIGTERM, 300 seconds before the time is up, makes the processes save and end with 75. No process is killed because
# another one has ended: they end together, when process 0 has finished the checkpoint.
srun --kill-on-bad-exit=0 python -m experiments.train "$@"
code=$?

# 75 preempted, 76 stalled, 77 lost another process, 134 aborted, 137 killed: the same command continues from the newest
# checkpoint. Any other is an error that would come again.
case $code in
  75 | 76 | 77 | 134 | 137) scontrol requeue "$SLURM_JOB_ID" ;;
esac
exit $code
