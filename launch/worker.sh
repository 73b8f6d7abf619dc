#!/usr/bin/env bash
# Runs a program of t5x as one process of a run on several machines: adds the flags that tell it which one it is.
#
#   bash launch/worker.sh [--dry_run] WHERE COMMAND...
#
# WHERE says who knows that:
#   given    PROCESS_INDEX, PROCESS_COUNT, COORDINATOR_ADDRESS (host:port)
#   jobset   JOB_COMPLETION_INDEX of Kubernetes, PROCESS_COUNT, COORDINATOR_ADDRESS
#   gke_tpu  TPU_WORKER_ID and TPU_WORKER_HOSTNAMES, which GKE sets on TPU nodes
#   tpu_vm   the metadata server of a Cloud TPU VM
#   slurm    srun's variables: one process for each GPU
#
# A run of one process gets no flags. The other scripts call this on each machine; by hand, on each worker of a TPU VM:
#   bash launch/worker.sh tpu_vm python -m t5x.train --gin_file=...
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

PORT="${COORDINATOR_PORT:-8476}"

# Prints an attribute of the TPU VM that this is.
metadata() {
  curl --silent --fail --noproxy '*' --retry 5 -H 'Metadata-Flavor: Google' \
    "http://${GCE_METADATA_HOST:-metadata.google.internal}/computeMetadata/v1/instance/attributes/$1" ||
    fail "the metadata server does not tell $1: is this a Cloud TPU VM?"
}

where_given() {
  need PROCESS_INDEX 0
  need PROCESS_COUNT 2
  need COORDINATOR_ADDRESS localhost:8476
  INDEX="$PROCESS_INDEX" COUNT="$PROCESS_COUNT" ADDRESS="$COORDINATOR_ADDRESS"
}

where_jobset() {
  need JOB_COMPLETION_INDEX 0
  PROCESS_INDEX="$JOB_COMPLETION_INDEX" where_given
}

where_gke_tpu() {
  need TPU_WORKER_ID 0
  need TPU_WORKER_HOSTNAMES host-0,host-1
  workers "$TPU_WORKER_ID" "$TPU_WORKER_HOSTNAMES"
}

where_tpu_vm() {
  local index endpoints
  index="$(metadata agent-worker-number)"
  endpoints="$(metadata worker-network-endpoints)"
  workers "$index" "$endpoints"
}

# workers INDEX LIST: of a comma-separated list of hosts, or of the older name:id:address.
workers() {
  local hosts
  IFS=, read -r -a hosts <<< "$2"
  INDEX="$1" COUNT="${#hosts[@]}" ADDRESS="${hosts[0]##*:}:$PORT"
}

where_slurm() {
  local hosts
  need SLURM_PROCID 0
  need SLURM_NTASKS 2
  need SLURM_JOB_ID 1
  need SLURM_JOB_NODELIST 'node[1-2]'
  need_program scontrol 'it belongs to Slurm'
  hosts="$(scontrol show hostnames "$SLURM_JOB_NODELIST")"
  # Two jobs that share a node must not share a port.
  INDEX="$SLURM_PROCID" COUNT="$SLURM_NTASKS" ADDRESS="${hosts%%$'\n'*}:${COORDINATOR_PORT:-$((SLURM_JOB_ID % 4096 + 61440))}"
}

case "${1:-}" in
  -h | --help) usage; exit 0 ;;
  --dry_run) DRY_RUN=1; shift ;;
esac
WHERE="${1:-}"
case "$WHERE" in
  given | jobset | gke_tpu | tpu_vm | slurm) shift ;;
  *) fail "say where this runs: worker.sh given|jobset|gke_tpu|tpu_vm|slurm COMMAND; -h tells more" ;;
esac
[ $# -gt 0 ] || fail "give the command to run, e.g. worker.sh $WHERE python -m t5x.train --gin_file=..."
"where_$WHERE"
[[ "$INDEX" =~ ^[0-9]+$ && "$COUNT" =~ ^[1-9][0-9]*$ && "$INDEX" -lt "$COUNT" ]] ||
  fail "process $INDEX of $COUNT: the index must be a number from 0 to $COUNT - 1"
if [ "$COUNT" -gt 1 ]; then
  set -- "$@" --multiprocess_gpu --coordinator_address="$ADDRESS" --process_count="$COUNT" --process_index="$INDEX"
fi
if [ -n "$DRY_RUN" ]; then
  quoted "$@"
else
  exec "$@"
fi
