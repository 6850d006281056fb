#!/bin/bash
# A whole run of musedask inside one allocation of Slurm: the scheduler and the command on the first node, a worker on
# each node, started by srun.  Nothing else is submitted, and nothing is left when the job ends.
#
#   musedask cluster template slurm-run.sh > run.sh      adapt the lines marked <--
#   sbatch run.sh combine PIXTABLE_REDUCED_*.fits -o mosaic.zarr
#   sbatch run.sh reduce config.json
#
# What follows the name of the script is the command of musedask, without --cluster.
#
#SBATCH --job-name=musedask
#SBATCH --nodes=4                    # <-- workers
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16           # <-- threads of a worker
#SBATCH --mem=64G                    # <-- of a node
#SBATCH --time=12:00:00              # <--
#SBATCH --output=musedask-%j.log
##SBATCH --partition=compute         # <--
##SBATCH --account=me                # <--

set -euo pipefail

# ---- musedask, dask and esorex must be found, on all nodes                                                   <--
# module load esorex
# source ~/musedask/bin/activate
INTERFACE=${INTERFACE:-}             # <-- network of the nodes, e.g. ib0; empty: that of their names
DASHBOARD=${DASHBOARD:-:0}           # [address]:port of the pages of the scheduler; 0: any that is free
LOCAL=${LOCAL:-${TMPDIR:-/tmp}}      # <-- scratch on a disk of the node
export OMP_NUM_THREADS=1
export DASK_DISTRIBUTED__WORKER__MEMORY__TARGET=False
export DASK_DISTRIBUTED__WORKER__MEMORY__SPILL=False

workers=$SLURM_JOB_NUM_NODES
threads=$SLURM_CPUS_PER_TASK
# SLURM_MEM_PER_NODE is in MiB; 0.4 GB are left for Python and its packages
memory=$((SLURM_MEM_PER_NODE * 1048576 - 400000000))

# ---- the folder of the run must be seen by all nodes
run=$PWD/.musedask-job-$SLURM_JOB_ID
mkdir -p "$run"
scheduler=
servers=
finish() {
  {
    # workers first: one that loses its scheduler while it ends may hang.  They may end in order, but need not.
    for process in $servers $scheduler; do
      kill $process
      for _ in $(seq 100); do
        kill -0 $process || break
        sleep 0.1
      done
      kill -9 $process
    done
  } 2>/dev/null || true
  rm -rf "$run"
}
trap finish EXIT
trap 'exit 143' TERM

network=()
if [ -n "$INTERFACE" ]; then network=(--interface "$INTERFACE"); fi

dask scheduler --scheduler-file "$run/scheduler.json" --port 0 --dashboard-address "$DASHBOARD" \
  "${network[@]}" &
scheduler=$!
for _ in $(seq 600); do
  [ -s "$run/scheduler.json" ] && break
  kill -0 $scheduler
  sleep 0.1
done

srun --ntasks="$workers" --cpus-per-task="$threads" \
  dask worker --scheduler-file "$run/scheduler.json" --nthreads "$threads" --memory-limit 0 --no-dashboard \
  --local-directory "$LOCAL" --death-timeout 300 --resources "esorex=$threads,MEMORY=$memory" "${network[@]}" &
servers=$!

cluster=(--cluster "$run/scheduler.json:$workers")
musedask cluster check "${cluster[@]}" --path "$PWD"
musedask "$@" "${cluster[@]}"
