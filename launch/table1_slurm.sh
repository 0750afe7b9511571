#!/bin/bash
# Table 1 of the paper on Slurm: an array of its 28 runs, which are the lines of table1.txt.
#
#   sbatch --gpus-per-node=8 --time=24:00:00 launch/table1_slurm.sh \
#     /shared/runs --config.data.train=/shared/Shadow_2k.parquet
#
# The first argument is the folder of the runs; what follows is the command's. Each run has one node
# and is started by slurm.sh, which see: it is requeued when it is preempted. A complete run is left
# alone, so the array can be submitted again. Submit from the repository.
#SBATCH --array=0-27
#SBATCH --nodes=1
#SBATCH --job-name=table1
#SBATCH --output=%x-%A_%a.out
#SBATCH --open-mode=append
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --signal=B:USR1@120

runs=${1:?the folder of the runs is missing}
shift
: "${SLURM_ARRAY_TASK_ID:?this is an array; submit it with sbatch}"
mapfile -t rows < launch/table1.txt
row=${rows[$SLURM_ARRAY_TASK_ID]:?table1.txt has no such line}
set -- --config "paper/table1:$row" --workdir "$runs/${row//,/_}" "$@"
source launch/slurm.sh                                       # this shell gets the signals
