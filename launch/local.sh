#!/usr/bin/env bash
# Trains C-Poly on this machine, from nothing: environment, install, training, a table of results.
#
#   bash launch/local.sh [-- any flag of t5x.train]
#
#   GIN_FILE   what to train (default: gin_configs/cpoly_tiny.gin)
#   MODEL_DIR  where the outputs go (default: outputs/cpoly_tiny, or as the gin file says)
#   VENV, PYTHON: see launch/environment.sh
#
# Run it again: it reuses the environment, and a finished run only prints its table again.
set -euo pipefail
case "${1:-}" in
  -h|--help) sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 0 ;;
  --) shift ;;
esac
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
ensure_environment
cd "$ROOT"
flags=(--gin_file="${GIN_FILE:-gin_configs/cpoly_tiny.gin}")
if [ -n "${MODEL_DIR:-}" ]; then
  flags+=(--gin.MODEL_DIR="'$MODEL_DIR'")
fi
exec "$VENV/bin/python" -m t5x.train "${flags[@]}" "$@"
