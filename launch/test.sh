#!/usr/bin/env bash
# Lint, format and tests, as a fresh clone needs them:
#
#   bash launch/test.sh [--quick] [arguments of pytest]
#
# --quick is the fast lane: it leaves out comparisons with PyTorch's
# implementations, with what they need, end-to-end tests, and tests that compute
# for more than two seconds.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/setup_venv.sh

arguments=()
extra=parity
for argument in "$@"; do
  if [[ "$argument" == --quick ]]; then
    arguments+=(-m 'not parity and not e2e and not slow')
    extra=test
  else
    arguments+=("$argument")
  fi
done
setup_venv "$extra"
if [[ "$extra" != test ]]; then
  python -m tests.helpers.chromium ||
    echo 'No Chromium: the tests of the page in a browser are skipped' >&2
fi
ruff check .
ruff format --check .
exec python -m pytest -n 2 --dist worksteal ${arguments[@]+"${arguments[@]}"}
