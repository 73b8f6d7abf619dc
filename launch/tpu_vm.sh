#!/usr/bin/env bash
# Trains on a Cloud TPU VM, one host or a whole slice: the same command on every worker.
#
#   bash launch/tpu_vm.sh create    asks for the TPU as a queued resource, or finds it there, and waits until it is ready
#   bash launch/tpu_vm.sh install   copies this checkout to every worker and installs it there
#   bash launch/tpu_vm.sh run       starts training on every worker, and returns [-- flags of t5x.train]
#   bash launch/tpu_vm.sh logs      the output of one worker, WORKER (default: 0), as it comes
#   bash launch/tpu_vm.sh status    the state of the TPU, and whether training runs
#   bash launch/tpu_vm.sh stop      ends training
#   bash launch/tpu_vm.sh delete    deletes the TPU and its queued resource
#
# Before `--`, each takes --dry_run, which prints the commands and runs none; `run` takes --env=NAME=VALUE ..., variables of training.
#
#   TPU_NAME, ZONE    must be set, e.g. cpoly and us-east5-b; PROJECT (default: gcloud's own)
#   ACCELERATOR_TYPE  what to create, e.g. v5litepod-16, v5p-8, v6e-16
#   RUNTIME_VERSION   the image of the workers (default: the one for JAX on ACCELERATOR_TYPE)
#   SPOT=1            a TPU that can be taken away; RESERVED=1 one of your reservation
#   GIN_FILE          what to train (default: gin_configs/cpoly_tiny.gin)
#   MODEL_DIR         where outputs go, a bucket: all workers write there, and the same command goes on after a stop
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

FOLDER=cpoly-jax

# tpus GROUP VERB ...: gcloud compute tpus, in the project and zone of the settings.
tpus() {
  run gcloud compute tpus "$@" --zone="$ZONE" ${PROJECT:+--project="$PROJECT"}
}

# on_workers WORKERS COMMAND: runs a line of shell on one worker or all.
on_workers() {
  tpus tpu-vm ssh "$TPU_NAME" --worker="$1" --command="$2"
}

state() {
  tpus queued-resources describe "$TPU_NAME" --format='value(state.state)'
}

runtime_version() {
  case "$ACCELERATOR_TYPE" in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v4-* | v3-* | v2-*) echo tpu-ubuntu2204-base ;;
    *) fail "ACCELERATOR_TYPE=$ACCELERATOR_TYPE: set RUNTIME_VERSION too, it is not one of v2, v3, v4, v5litepod, v5p, v6e" ;;
  esac
}

create() {
  local now version
  need ACCELERATOR_TYPE v6e-16
  version="${RUNTIME_VERSION:-$(runtime_version)}"
  if [ -n "$DRY_RUN" ] || ! state > /dev/null 2>&1; then
    tpus queued-resources create "$TPU_NAME" --node-id="$TPU_NAME" --accelerator-type="$ACCELERATOR_TYPE" \
      --runtime-version="$version" ${SPOT:+--spot} ${RESERVED:+--reserved}
  fi
  if [ -n "$DRY_RUN" ]; then
    state
    return
  fi
  while true; do
    now="$(state)"
    case "$now" in
      ACTIVE) echo "$TPU_NAME is ready"; return ;;
      FAILED | SUSPENDING | SUSPENDED | DELETING) fail "$TPU_NAME is $now: delete it, then create it again" ;;
    esac
    echo "$TPU_NAME is $now"
    sleep "${POLL_SECONDS:-30}"
  done
}

install() {
  local archive="$FOLDER.tar.gz"
  if [ -z "$DRY_RUN" ]; then
    SCRATCH="$(mktemp -d)"
    trap 'rm -rf "$SCRATCH"' EXIT
    archive="$SCRATCH/$archive"
  fi
  run tar -czf "$archive" -C "$ROOT" --exclude=./.git --exclude=./.venv --exclude=./outputs --exclude=__pycache__ .
  tpus tpu-vm scp "$archive" "$TPU_NAME:$FOLDER.tar.gz" --worker=all
  on_workers all "mkdir -p $FOLDER && tar -xzf $FOLDER.tar.gz -C $FOLDER && bash $FOLDER/launch/install.sh tpu"
}

start() {
  local command
  need_shared_model_dir
  train_arguments
  command="$(quoted env ${ENVIRONMENT[@]+"${ENVIRONMENT[@]}"} bash launch/worker.sh tpu_vm .venv/bin/python "${TRAIN[@]}")"
  on_workers all "cd $FOLDER && bash launch/background.sh start $command"
}

COMMAND=
parse_arguments "$@"
command_of create install run logs status stop delete
need TPU_NAME cpoly
need ZONE us-east5-b
need_program gcloud 'see cloud.google.com/sdk, then: gcloud auth login'
case "$COMMAND" in
  create) create ;;
  install) install ;;
  run) start ;;
  logs) on_workers "${WORKER:-0}" "cd $FOLDER && bash launch/background.sh logs" ;;
  status)
    state
    on_workers all "cd $FOLDER && bash launch/background.sh status"
    ;;
  stop) on_workers all "cd $FOLDER && bash launch/background.sh stop" ;;
  delete) tpus queued-resources delete "$TPU_NAME" --force --quiet ;;
esac
