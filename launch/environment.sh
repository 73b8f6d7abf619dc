# shellcheck shell=bash
# Sourced by the other scripts: makes the environment once and reuses it.
#
#   VENV    folder of the virtual environment (default: .venv in the checkout)
#   PYTHON  interpreter to make it with (default: the newest python3 that is 3.11 or later)

set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${VENV:-$ROOT/.venv}"

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: no Python 3.11 or later found; install one, or name it: PYTHON=/path/to/python $0" >&2
  exit 1
}

# Installs the project into $VENV unless this very set of requirements is there already.
#
#   ensure_environment          what everything needs
#   ensure_environment parity   that, and the extra `parity` of setup.py, into the same environment
#
# Each has a stamp of its own: what has the extra is not installed again without it, and gets it later if it has not.
ensure_environment() {
  local extra="${1:-}" python stamp wanted
  local requirements=(-r requirements.txt)
  python="$(find_python)"
  wanted="$(cd "$ROOT" && "$python" --version && cat setup.py t5x_lite/setup.py requirements.txt constraints.txt)"
  stamp="$VENV/.installed${extra:+-$extra}"
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && [ -x "$VENV/bin/python" ]; then
    return
  fi
  if [ -n "$extra" ]; then
    requirements+=(-e ".[$extra]")
  fi
  echo "Installing into $VENV (once; some minutes) ..."
  "$python" -m venv "$VENV"
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade pip
  (cd "$ROOT" && "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "${requirements[@]}" -c constraints.txt)
  printf '%s\n' "$wanted" | tee "$VENV/.installed" > "$stamp"
}
