#!/usr/bin/env bash
# Checks the project on this machine, from nothing: environment, install, lint, all tests.
#
#   bash launch/test.sh [arguments for pytest, e.g. tests/cpoly_jax -k routing]
#   bash launch/test.sh --all [...]   installs torch, transformers and PEFT too, for the parity tests, which skip without them
#   bash launch/test.sh -m slow       the checks that take minutes each
#
#   TEST_PROCESSES: test files that run at a time, 2 by default; each needs up to 5 GB
#   VENV, PYTHON: see launch/environment.sh
#   CPOLY_SHARED: folder with the optional sample data; tests that need it skip where it is absent
set -euo pipefail
extra=
case "${1:-}" in
  -h|--help) sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 0 ;;
  # The variable makes an absent library a failure of the parity tests.
  --all) extra=parity; export CPOLY_PARITY=1; shift ;;
esac
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
ensure_environment "$extra"
cd "$ROOT"
"$VENV/bin/ruff" check .
JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}" "$VENV/bin/python" -m pytest -n "${TEST_PROCESSES:-2}" --dist loadfile "$@"
