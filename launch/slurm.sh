#!/usr/bin/env bash
# One process per GPU, over as many nodes as asked for:
#
#   sbatch launch/slurm.sh --config=configs/mlvicx.py --config.data.manual_dir=/scratch/ChestX-ray14
#
# Edit the resources below. jax finds the other processes from SLURM's environment. The batch size is the
# config's, over all GPUs together. The folder with workdirs/ must be one that all nodes see.

#SBATCH --job-name=mlvicx
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out

# TERM@180: three minutes before the time is up, and when the job is preempted, every process saves and
# ends with 75. 70: a host stopped answering. 134, 137: a process was aborted or killed, by the kernel for
# want of memory or with its host. After all of these the same job goes on from the newest checkpoint.
# Anything else is an error that a restart would only repeat.
set -u
most_restarts=50

srun --kill-on-bad-exit=1 python main.py "$@"
code=$?

case $code in
    0) echo 'finished' ;;
    70 | 75 | 134 | 137 | 143)  # 143: ended by SIGTERM before the program could listen
        if (( ${SLURM_RESTART_COUNT:-0} < most_restarts )); then
            echo "ended with $code; requeued"
            scontrol requeue "$SLURM_JOB_ID"
        else
            echo "ended with $code after $most_restarts restarts; not requeued" >&2
        fi ;;
esac
exit "$code"
