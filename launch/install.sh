#!/usr/bin/env bash
# Installs the project into its virtual environment, with the libraries of the accelerators of this machine.
#
#   bash launch/install.sh [--dry_run] cpu|tpu|gpu
#
#   VENV, PYTHON: see launch/environment.sh
#
# Where there is no Python 3.11 or later, as on Cloud TPU VMs of Ubuntu 22.04, one is fetched with uv.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse_arguments "$@"
command_of cpu tpu gpu
extra=
if [ "$COMMAND" != cpu ]; then
  extra="$COMMAND"
fi
source "$ROOT/launch/environment.sh"
if ! (find_python) > /dev/null 2>&1; then
  [ -z "${PYTHON:-}" ] || fail "PYTHON=$PYTHON is not Python 3.11 or later"
  run python3 -m pip install --quiet --user uv
  run python3 -m uv python install 3.12
  if [ -z "$DRY_RUN" ]; then
    PYTHON="$(python3 -m uv python find 3.12)"
  fi
fi
if [ -n "$DRY_RUN" ]; then
  echo "source launch/environment.sh && ensure_environment $extra"
else
  ensure_environment "$extra"
fi
