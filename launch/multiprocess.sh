#!/usr/bin/env bash
# Trains on this machine's CPU by several processes that work together as the hosts of a pod do.
#
#   bash launch/multiprocess.sh [--dry_run] [--env=NAME=VALUE ...] [-- flags of t5x.train]
#
#   PROCESSES            how many (default: 2)
#   DEVICES_PER_PROCESS  virtual devices of each (default: 1)
#   COORDINATOR_PORT     a free port (default: any)
#   LOG_DIR              folder of process_<i>.log of all but the first, which prints here (default: a temporary one)
#   GIN_FILE, MODEL_DIR  as for launch/local.sh
#   VENV, PYTHON         see launch/environment.sh
#
# To try what several hosts do, before a pod is paid for; it is slower than one process.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse_arguments "$@"
[ "${#ARGUMENTS[@]}" -eq 0 ] || fail "unexpected argument ${ARGUMENTS[0]}: flags of t5x.train come after --"
PROCESSES="${PROCESSES:-2}"
DEVICES_PER_PROCESS="${DEVICES_PER_PROCESS:-1}"
need_number PROCESSES DEVICES_PER_PROCESS
source "$ROOT/launch/environment.sh"
if [ -z "$DRY_RUN" ]; then
  ensure_environment
  LOG_DIR="${LOG_DIR:-$(mktemp -d)}"
  mkdir -p "$LOG_DIR"
  COORDINATOR_PORT="${COORDINATOR_PORT:-$("$VENV/bin/python" -c \
    'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')}"
fi
cd "$ROOT"
train_arguments

# command_of_process I: puts what process I runs into PROCESS.
command_of_process() {
  PROCESS=(env JAX_PLATFORMS=cpu XLA_FLAGS="--xla_force_host_platform_device_count=$DEVICES_PER_PROCESS"
    PROCESS_INDEX="$1" PROCESS_COUNT="$PROCESSES" COORDINATOR_ADDRESS="localhost:${COORDINATOR_PORT:-8476}"
    ${ENVIRONMENT[@]+"${ENVIRONMENT[@]}"} bash launch/worker.sh given "$VENV/bin/python" "${TRAIN[@]}")
}

if [ -n "$DRY_RUN" ]; then
  for ((i = 0; i < PROCESSES; i++)); do
    command_of_process "$i"
    run "${PROCESS[@]}"
  done
  exit
fi
pids=()
trap 'kill ${pids[@]+"${pids[@]}"} 2> /dev/null || true' EXIT
for ((i = 0; i < PROCESSES; i++)); do
  command_of_process "$i"
  if [ "$i" -eq 0 ]; then
    "${PROCESS[@]}" &
  else
    "${PROCESS[@]}" > "$LOG_DIR/process_$i.log" 2>&1 &
  fi
  pids+=($!)
done
while [ "${#pids[@]}" -gt 0 ]; do
  sleep 0.2
  for i in "${!pids[@]}"; do
    if kill -0 "${pids[$i]}" 2> /dev/null; then
      continue
    fi
    if ! wait "${pids[$i]}"; then
      [ "$i" -eq 0 ] || tail -n 5 "$LOG_DIR/process_$i.log" >&2
      # The others would wait for it.
      fail "process $i of $PROCESSES failed; what all but the first printed is in $LOG_DIR"
    fi
    unset "pids[$i]"
  done
done
