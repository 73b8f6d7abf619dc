# shellcheck shell=bash disable=SC2034
# Sourced by the scripts for other machines: arguments, settings, quoting, and `--dry_run`.

set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
DRY_RUN=
ARGUMENTS=()    # Words before `--` that are not options.
ENVIRONMENT=()  # NAME=VALUE, for the training processes.
TRAIN_FLAGS=()  # Flags of t5x.train, after `--`.

fail() {
  echo "error: $1" >&2
  exit 1
}

# Prints the comment at the top of the script that runs.
usage() {
  awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$0"
}

# Sets the variables above from the command line.
parse_arguments() {
  while [ $# -gt 0 ]; do
    case "$1" in
      -h | --help) usage; exit 0 ;;
      --dry_run) DRY_RUN=1 ;;
      --env=[A-Za-z_]*=*) ENVIRONMENT+=("${1#--env=}") ;;
      --env=*) fail "$1: write --env=NAME=VALUE" ;;
      --) shift; TRAIN_FLAGS=("$@"); return ;;
      -*) fail "unknown option $1: flags of t5x.train come after --, e.g. $(basename "$0") run -- --gin.TRAIN_STEPS=100" ;;
      *) ARGUMENTS+=("$1") ;;
    esac
    shift
  done
}

# command_of create run ...: sets COMMAND to the only word of the command line, which is one of these.
command_of() {
  local known
  COMMAND="${ARGUMENTS[0]:-}"
  [ -n "$COMMAND" ] || fail "say what to do: $(basename "$0") $(echo "$*" | tr ' ' '|'); -h tells more"
  [ "${#ARGUMENTS[@]}" -eq 1 ] || fail "unexpected argument ${ARGUMENTS[1]}"
  for known in "$@"; do
    [ "$known" != "$COMMAND" ] || return 0
  done
  fail "unknown command $COMMAND: write one of $*"
}

# need NAME EXAMPLE: the setting NAME must be there.
need() {
  [ -n "${!1:-}" ] || fail "$1 is not set: give it in the environment, e.g. $1=$2"
}

# need_number NAME...: settings that are whole numbers from 1 on.
need_number() {
  local name
  for name in "$@"; do
    [[ "${!name}" =~ ^[1-9][0-9]*$ ]] || fail "$name=${!name}: give a whole number of 1 or more"
  done
}

# need_program NAME WHERE: a client program, which a dry run does without.
need_program() {
  [ -n "$DRY_RUN" ] || command -v "$1" > /dev/null || fail "$1 is not installed: $2"
}

# Prints its arguments as one line that a shell reads as these very arguments.
quoted() {
  local word line='' single="'" escaped="'\\''"
  for word in "$@"; do
    if [[ ! "$word" =~ ^[A-Za-z0-9_./:,@%+=-]+$ ]]; then
      word="'${word//$single/$escaped}'"
    fi
    line+="${line:+ }$word"
  done
  printf '%s\n' "$line"
}

# Runs its arguments; a dry run prints them.
run() {
  if [ -n "$DRY_RUN" ]; then
    quoted "$@"
  else
    "$@"
  fi
}

# Prints a text as gin and Python write it.
gin_string() {
  printf "'%s'" "$(printf %s "$1" | sed -e 's/\\/\\\\/g' -e "s/'/\\\\'/g")"
}

# Puts `-m t5x.train` and all of its flags into TRAIN: GIN_FILE, MODEL_DIR, and what came after `--`.
train_arguments() {
  TRAIN=(-m t5x.train --gin_file="${GIN_FILE:-gin_configs/cpoly_tiny.gin}")
  if [ -n "${MODEL_DIR:-}" ]; then
    TRAIN+=(--gin.MODEL_DIR="$(gin_string "$MODEL_DIR")")
  fi
  TRAIN+=(${TRAIN_FLAGS[@]+"${TRAIN_FLAGS[@]}"})
}

# MODEL_DIR must be a place that all machines write to.
need_shared_model_dir() {
  need MODEL_DIR gs://my-bucket/cpoly
  [[ "$MODEL_DIR" == *://* || "$MODEL_DIR" == /* ]] ||
    fail "MODEL_DIR=$MODEL_DIR is a folder of one machine: give a bucket, e.g. gs://my-bucket/cpoly, or a mounted /folder"
}
