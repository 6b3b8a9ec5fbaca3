#!/usr/bin/env bash
# One run on GPUs of a SLURM cluster: a task a GPU, joined by jax's own SLURM support.
#
#   sbatch --nodes=4 --gpus-per-node=8 --ntasks-per-node=8 launch/slurm.sh --config configs/prefixlm.py:base --workdir /shared/base
#
# The working directory, the run directory and TFDS_DATA_DIR must be on a file system that all nodes share. At the
# time limit SLURM sends SIGTERM 120 s before the end; on preemption the cluster's GraceTime decides. The run saves its state
# and the job is queued again, where the same command continues. DRY_RUN=1 launch/slurm.sh ... prints what would be run.
#
# Environment: VENV (a virtual environment to activate), SIMVLM_RETRIES (how often a lost node queues the job again, 20).
#SBATCH --job-name=simvlm
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@120
set -euo pipefail

command=(srun --kill-on-bad-exit=0 --label python -m simvlm_jax.main "$@")
if [[ "${DRY_RUN:-}" == 1 ]]; then
  [[ -n "${VENV:-}" ]] && echo "source $VENV/bin/activate"
  printf '%q ' "${command[@]}"
  echo
  exit 0
fi
if [[ -z "${SLURM_JOB_ID:-}" ]]; then
  echo "error: not inside a SLURM job; run sbatch launch/slurm.sh ..., or DRY_RUN=1 launch/slurm.sh ..." >&2
  exit 1
fi
if [[ -n "${VENV:-}" ]]; then
  # shellcheck source=/dev/null
  source "$VENV/bin/activate"
fi

code=0
"${command[@]}" || code=$?
# 75: stopped on request, its state saved. 76, or 128 and a signal: a process was lost. The same command continues.
if ((code == 75 || code == 76 || code > 128)) && ((${SLURM_RESTART_COUNT:-0} < ${SIMVLM_RETRIES:-20})); then
  echo "queueing the job again (exit code $code)"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
