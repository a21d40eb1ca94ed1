#!/usr/bin/env bash
# Sourced by the other scripts, from the repository's root:
#
#   setup_venv [EXTRA]
#
# makes .venv if there is none, installs the project with its EXTRA (as in
# setup.py) unless nothing has changed since the last time, and activates it.
# PYTHON names an interpreter, VENV another place.

oldest='3.11'

find_python() {
  local candidate
  # Each is run, since a name on the PATH may be a shim with nothing behind it.
  for candidate in ${PYTHON:+"$PYTHON"} python3.12 python3.11 python3.13 \
    python3 python; do
    if "$candidate" -c "import sys
sys.exit(sys.version_info < tuple(map(int, '$oldest'.split('.'))))" \
      > /dev/null 2>&1; then
      command -v "$candidate"
      return
    fi
    if [[ -n "${PYTHON:-}" ]]; then
      break
    fi
  done
  echo "No Python $oldest or newer found${PYTHON:+ at PYTHON=$PYTHON}: the" \
    "newest here is $(python3 --version 2>&1 || echo none). Install one, or" \
    'name it: PYTHON=/path/to/python bash ...' >&2
  return 1
}

setup_venv() {
  local extra="${1:-}" venv="${VENV:-.venv}" python stamp state
  if ! "$venv/bin/python" -c 'import pip' > /dev/null 2>&1; then
    python="$(find_python)" || return 1
    echo "Making $venv with $("$python" --version)" >&2
    if ! "$python" -m venv --clear "$venv" >&2; then
      rm -rf "$venv"
      echo "$python cannot make a virtual environment; on Debian and Ubuntu:" \
        'apt install python3-venv' >&2
      return 1
    fi
  fi
  stamp="$venv/.installed-${extra:-base}"
  state="$(cat setup.py pyproject.toml spacetime/__init__.py | cksum)"
  if [[ "$(cat "$stamp" 2> /dev/null)" != "$state" ]]; then
    echo 'Installing the project and what it needs' >&2
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
      --editable ".${extra:+[$extra]}" >&2 || return 1
    echo "$state" > "$stamp"
  fi
  # shellcheck disable=SC1091
  source "$venv/bin/activate"
}
