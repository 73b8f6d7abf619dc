#!/usr/bin/env bash
# Trains on GPU nodes of a Slurm cluster, one process for each GPU: one sbatch, and srun inside.
#
#   bash launch/slurm.sh run [--dry_run] [--env=NAME=VALUE ...] [-- flags of t5x.train]
#   bash launch/slurm.sh logs|status|cancel JOB_ID
#
#   NODES, GPUS_PER_NODE      how many (default: 1, 8)
#   PARTITION, ACCOUNT, TIME  as for sbatch (default: the cluster's)
#   JOB_NAME                  (default: cpoly)
#   SBATCH_FLAGS              more flags of sbatch, separated by spaces, e.g. '--mem=0 --exclusive'
#   LOG_DIR                   folder of <job>.log (default: outputs/slurm)
#   GIN_FILE, MODEL_DIR       as for launch/local.sh; every node writes to MODEL_DIR
#   VENV                      the environment, made before by `bash launch/install.sh gpu` (default: .venv in the checkout)
#
# Checkout, VENV, LOG_DIR and MODEL_DIR must be where all nodes see them. A job that Slurm requeues goes on from its last checkpoint.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# One process for each GPU, with all of its node's GPUs visible: inside srun JAX takes the one of its local rank.
submit() {
  local flags command log_dir="${LOG_DIR:-$ROOT/outputs/slurm}" python="${VENV:-$ROOT/.venv}/bin/python"
  NODES="${NODES:-1}" GPUS_PER_NODE="${GPUS_PER_NODE:-8}"
  need_number NODES GPUS_PER_NODE
  [ -n "$DRY_RUN" ] || [ -x "$python" ] || fail "$python is not there: run bash launch/install.sh gpu first"
  train_arguments
  command="cd $(quoted "$ROOT") && exec $(quoted srun --kill-on-bad-exit=1 env ${ENVIRONMENT[@]+"${ENVIRONMENT[@]}"} \
    bash launch/worker.sh slurm "$python" "${TRAIN[@]}")"
  flags=(--job-name="${JOB_NAME:-cpoly}" --nodes="$NODES" --ntasks-per-node="$GPUS_PER_NODE" --gpus-per-node="$GPUS_PER_NODE"
    --output="$log_dir/%j.log" --open-mode=append --requeue)
  flags+=(${PARTITION:+--partition="$PARTITION"} ${ACCOUNT:+--account="$ACCOUNT"} ${TIME:+--time="$TIME"})
  # shellcheck disable=SC2206  # Split at spaces, as documented.
  flags+=(${SBATCH_FLAGS:-})
  run mkdir -p "$log_dir"
  run sbatch "${flags[@]}" --wrap="$command"
}

COMMAND=
parse_arguments "$@"
JOB=
if [ "${#ARGUMENTS[@]}" -eq 2 ] && [ "${ARGUMENTS[0]}" != run ]; then
  JOB="${ARGUMENTS[1]}"
  ARGUMENTS=("${ARGUMENTS[0]}")
fi
command_of run logs status cancel
[ "$COMMAND" = run ] || [[ "$JOB" =~ ^[0-9]+$ ]] || fail "give the number of the job: slurm.sh $COMMAND JOB_ID"
need_program sbatch 'run this on a login node of the cluster'
case "$COMMAND" in
  run) submit ;;
  logs) run tail -n 100 -F "${LOG_DIR:-$ROOT/outputs/slurm}/$JOB.log" ;;
  status) run squeue --jobs="$JOB" --long ;;
  cancel) run scancel "$JOB" ;;
esac
