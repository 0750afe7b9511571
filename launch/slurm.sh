#!/bin/bash
# Shadow-FT on Slurm: one task a node, which has all of the node's devices.
#
#   sbatch --nodes=4 --gpus-per-node=8 --time=24:00:00 launch/slurm.sh \
#     --config configs/full.py --workdir /shared/runs/a
#
# Options before the script's name are Slurm's and win over those below; what follows it is the
# command's. Submit from a folder all nodes see; PYTHON names another interpreter than `python`.
# Two minutes before the time limit, and when the job is preempted, the processes get SIGTERM and
# the job is requeued; it goes on from its last checkpoint.
#SBATCH --job-name=shadowft
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --signal=B:USR1@120

# One task of an array has the number of the whole array as its SLURM_JOB_ID.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
trap 'again=1; scancel --signal=TERM "$job"' USR1            # to the tasks, not to this shell
trap 'again=1' TERM                                          # the tasks get it from Slurm, too

# No --kill-on-bad-exit: a failure would look like a preemption. The tasks end each other.
srun "${PYTHON:-python}" -m shadowft_jax.train "$@" &
again=1
while [ "$again" ]; do                                       # a trap ends the wait
  again=
  wait $!
  status=$?
done
state=$(squeue --noheader --format=%T --jobs="$job")
if [ "$status/$state" = 143/RUNNING ]; then                  # ended by SIGTERM, not by scancel
  scontrol requeue "$job"
fi
exit "$status"
