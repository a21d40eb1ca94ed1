#!/usr/bin/env bash
# One video from the bundled model:
#
#   bash launch/demo.sh ["a prompt"] [--out=FILE.gif and other flags of sample]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/setup_venv.sh

prompt='a red seven moves to the right'
if [[ $# -gt 0 && "$1" != --* ]]; then
  prompt="$1"
  shift
fi
setup_venv
exec python -m spacetime sample --prompt="$prompt" --out=demo.mp4 --overwrite "$@"
