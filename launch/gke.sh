#!/usr/bin/env bash
# Trains on nodes of Google Kubernetes Engine, TPU or GPU: one JobSet, a pod on each node.
#
#   bash launch/gke.sh manifest   prints the JobSet [-- flags of t5x.train]
#   bash launch/gke.sh run        applies it [-- flags of t5x.train]
#   bash launch/gke.sh logs       the output of one pod, WORKER (default: 0), as it comes
#   bash launch/gke.sh status     the JobSet and its pods
#   bash launch/gke.sh delete     deletes the JobSet
#
# Before `--`, each takes --dry_run, which prints the commands and runs none; --env=NAME=VALUE ... are variables of training.
#
#   JOB_NAME         name of the JobSet (default: cpoly); NAMESPACE (default: kubectl's own)
#   IMAGE            must be set for manifest and run: an image of the Dockerfile, built for the accelerator
#   ACCELERATOR      tpu or gpu (default: tpu)
#   TPU_TYPE         node label, e.g. tpu-v5-lite-podslice, tpu-v5p-slice, tpu-v6e-slice (default: the last)
#   TPU_TOPOLOGY     chips of one slice, e.g. 4x4 or 2x2x2 (default: 4x4); CHIPS_PER_NODE (default: 4)
#   GPU_TYPE         node label (default: nvidia-h100-80gb); NODES (default: 1); GPUS_PER_NODE (default: 8)
#   SPOT=1           nodes that can be taken away
#   MAX_RESTARTS     how often all pods start again after one has failed, each time from the last checkpoint (default: 3)
#   SERVICE_ACCOUNT  of Kubernetes, with rights on the bucket (default: the namespace's own)
#   GIN_FILE         what to train (default: gin_configs/cpoly_tiny.gin)
#   MODEL_DIR        where outputs go, a bucket: all pods write there
#
# The cluster needs the JobSet controller, v0.5 or later, and the node pool.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# Prints a text as JSON, which is YAML too.
json() {
  printf '"%s"' "$(printf %s "$1" | sed -e 's/\\/\\\\/g' -e 's/"/\\"/g')"
}

# Prints a word of a container's command or environment as JSON; Kubernetes expands $(NAME) in it and reads $$ as $.
container_text() {
  json "$(printf %s "$1" | sed 's/[$]/&&/g')"
}

container_list() {
  local word line=''
  for word in "$@"; do
    line+="${line:+, }$(container_text "$word")"
  done
  printf '[%s]' "$line"
}

# Sets what differs between TPU and GPU nodes: WHERE (see launch/worker.sh), NODES, RESOURCE, PER_NODE, SELECTOR, ANNOTATIONS,
# SECURITY, VARIABLES.
set_nodes() {
  local size chips=1
  case "${ACCELERATOR:-tpu}" in
    tpu)
      TPU_TOPOLOGY="${TPU_TOPOLOGY:-4x4}" CHIPS_PER_NODE="${CHIPS_PER_NODE:-4}"
      [[ "$TPU_TOPOLOGY" =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] || fail "TPU_TOPOLOGY=$TPU_TOPOLOGY: write e.g. 4x4 or 2x2x2"
      need_number CHIPS_PER_NODE
      for size in ${TPU_TOPOLOGY//x/ }; do
        chips=$((chips * size))
      done
      ((chips % CHIPS_PER_NODE == 0)) ||
        fail "TPU_TOPOLOGY=$TPU_TOPOLOGY has $chips chips, which nodes of CHIPS_PER_NODE=$CHIPS_PER_NODE do not make up"
      NODES=$((chips / CHIPS_PER_NODE)) RESOURCE=google.com/tpu PER_NODE="$CHIPS_PER_NODE" WHERE=gke_tpu
      SELECTOR="cloud.google.com/gke-tpu-accelerator: $(json "${TPU_TYPE:-tpu-v6e-slice}")
                cloud.google.com/gke-tpu-topology: $(json "$TPU_TOPOLOGY")"
      # Pods of one slice on one node pool.
      ANNOTATIONS='alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool'
      # The devices belong to root.
      SECURITY='{privileged: true, runAsUser: 0}' VARIABLES=()
      # Nodes of a single host are not told who they are, and need not be.
      [ "$NODES" -gt 1 ] || WHERE=jobset
      ;;
    gpu)
      NODES="${NODES:-1}" GPUS_PER_NODE="${GPUS_PER_NODE:-8}"
      need_number NODES GPUS_PER_NODE
      RESOURCE=nvidia.com/gpu PER_NODE="$GPUS_PER_NODE" WHERE=jobset
      SELECTOR="cloud.google.com/gke-accelerator: $(json "${GPU_TYPE:-nvidia-h100-80gb}")"
      ANNOTATIONS='' SECURITY='{allowPrivilegeEscalation: false}'
      # Where GKE mounts the driver.
      VARIABLES=(LD_LIBRARY_PATH=/usr/local/nvidia/lib64)
      ;;
    *) fail "ACCELERATOR=$ACCELERATOR: write tpu or gpu" ;;
  esac
}

# Prints the variables of the container.
variables() {
  local pair
  for pair in PROCESS_COUNT="$NODES" COORDINATOR_ADDRESS="$JOB_NAME-workers-0-0.$JOB_NAME:8476" PYTHONUNBUFFERED=1 \
    ${VARIABLES[@]+"${VARIABLES[@]}"} ${ENVIRONMENT[@]+"${ENVIRONMENT[@]}"}; do
    printf '                    - {name: %s, value: %s}\n' "$(json "${pair%%=*}")" "$(container_text "${pair#*=}")"
  done
}

manifest() {
  local value
  need IMAGE us-docker.pkg.dev/my-project/my-repository/cpoly-jax:tpu
  need_shared_model_dir
  MAX_RESTARTS="${MAX_RESTARTS:-3}"
  [[ "$MAX_RESTARTS" =~ ^[0-9]+$ ]] || fail "MAX_RESTARTS=$MAX_RESTARTS: give a whole number"
  train_arguments
  for value in "$IMAGE" "${NAMESPACE:-}" "${SERVICE_ACCOUNT:-}" "${TPU_TYPE:-}" "${GPU_TYPE:-}" "${TRAIN[@]}" \
    ${ENVIRONMENT[@]+"${ENVIRONMENT[@]}"}; do
    [[ ! "$value" =~ [[:cntrl:]] ]] || fail "a line break or another control character is in $(printf %q "$value")"
  done
  set_nodes
  cat << EOM
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $JOB_NAME${NAMESPACE:+
  namespace: $(json "$NAMESPACE")}${ANNOTATIONS:+
  annotations:
    $ANNOTATIONS}
spec:
  failurePolicy:
    maxRestarts: $MAX_RESTARTS
  replicatedJobs:
    - name: workers
      replicas: 1
      template:
        spec:
          parallelism: $NODES
          completions: $NODES
          backoffLimit: 0
          template:
            spec:
              restartPolicy: Never${SERVICE_ACCOUNT:+
              serviceAccountName: $(json "$SERVICE_ACCOUNT")}
              nodeSelector:
                $SELECTOR${SPOT:+
                cloud.google.com/gke-spot: \"true\"
              tolerations:
                - {key: cloud.google.com/gke-spot, operator: Equal, value: \"true\", effect: NoSchedule\}}
              containers:
                - name: train
                  image: $(json "$IMAGE")
                  securityContext: $SECURITY
                  command: $(container_list bash launch/worker.sh "$WHERE" python)
                  args: $(container_list "${TRAIN[@]}")
                  ports:
                    - containerPort: 8476
                  env:
$(variables)
                  resources:
                    limits:
                      $RESOURCE: $PER_NODE
                  volumeMounts:
                    - {name: shared-memory, mountPath: /dev/shm}
              volumes:
                # Collectives between the GPUs of a node go through it, and its default size is too small.
                - {name: shared-memory, emptyDir: {medium: Memory}}
EOM
}

kube() {
  run kubectl "$@" ${NAMESPACE:+--namespace="$NAMESPACE"}
}

apply() {
  local text
  text="$(manifest)"
  if [ -n "$DRY_RUN" ]; then
    printf '%s <<'\''EOF'\''\n%s\nEOF\n' "$(kube apply --filename=-)" "$text"
  else
    kube apply --filename=- <<< "$text"
  fi
}

parse_arguments "$@"
command_of manifest run logs status delete
JOB_NAME="${JOB_NAME:-cpoly}"
# Pods are called <job>-workers-0-<index>, and names of hosts have at most 63 characters.
[[ "$JOB_NAME" =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] ||
  fail "JOB_NAME=$JOB_NAME: write lower-case letters, digits and -, 40 at most, a letter first"
[ "$COMMAND" = manifest ] || need_program kubectl 'see kubernetes.io/docs/tasks/tools'
case "$COMMAND" in
  manifest) manifest ;;
  run) apply ;;
  logs)
    kube logs --follow --tail=-1 --container=train \
      --selector="jobset.sigs.k8s.io/jobset-name=$JOB_NAME,batch.kubernetes.io/job-completion-index=${WORKER:-0}"
    ;;
  status)
    kube get jobset "$JOB_NAME"
    kube get pods --selector="jobset.sigs.k8s.io/jobset-name=$JOB_NAME" --output=wide
    ;;
  delete) kube delete jobset "$JOB_NAME" ;;
esac
