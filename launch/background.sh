#!/usr/bin/env bash
# Keeps a command running after its terminal or ssh connection is gone; one at a time in a folder.
#
#   bash launch/background.sh start COMMAND...   its output goes to run.log
#   bash launch/background.sh logs               the end of run.log, and what comes after it
#   bash launch/background.sh status             whether it runs; exit code 1 where not
#   bash launch/background.sh stop               SIGTERM, and SIGKILL after STOP_SECONDS (120)
#
#   RUN_DIR  the folder of run.log and run.pid (default: the working directory)
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

RUN_DIR="${RUN_DIR:-.}"
PID_FILE="$RUN_DIR/run.pid"
LOG_FILE="$RUN_DIR/run.log"

# Sets PID; says whether that process runs.
is_running() {
  PID="$(cat "$PID_FILE" 2> /dev/null || true)"
  [ -n "$PID" ] && kill -0 "$PID" 2> /dev/null
}

start() {
  [ $# -gt 0 ] || fail 'give the command to run: background.sh start COMMAND...'
  ! is_running || fail "process $PID still runs here: background.sh stop ends it"
  mkdir -p "$RUN_DIR"
  nohup "$@" > "$LOG_FILE" 2>&1 < /dev/null &
  echo $! > "$PID_FILE"
  echo "started process $!, output in $LOG_FILE"
}

stop() {
  local seconds
  if ! is_running; then
    echo 'nothing runs'
    return
  fi
  kill -TERM "$PID"
  for ((seconds = 0; seconds < ${STOP_SECONDS:-120}; seconds++)); do
    kill -0 "$PID" 2> /dev/null || break
    sleep 1
  done
  if kill -KILL "$PID" 2> /dev/null; then
    echo "killed process $PID"
  else
    echo "process $PID has ended"
  fi
}

case "${1:-}" in
  -h | --help) usage ;;
  start) shift; start "$@" ;;
  logs)
    [ -f "$LOG_FILE" ] || fail "there is no $LOG_FILE: nothing was started here"
    exec tail -n 100 -F "$LOG_FILE"
    ;;
  status)
    if is_running; then
      echo "process $PID runs"
    else
      echo 'nothing runs'
      exit 1
    fi
    ;;
  stop) stop ;;
  *) fail 'say what to do: background.sh start|logs|status|stop; -h tells more' ;;
esac
