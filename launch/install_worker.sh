#!/usr/bin/env bash
# Run on every worker of a TPU VM, in the unpacked checkout: installs the project
# into ~/venv. The images have Python 3.10 or whatever they come with; uv brings
# the Python that the project needs.
set -euo pipefail

python='3.12'
export PATH="$HOME/.local/bin:$PATH"
if ! command -v uv > /dev/null; then
  curl -LsSf https://astral.sh/uv/install.sh | sh \
    || python3 -m pip install --quiet --user uv
fi
if [[ ! -x "$HOME/venv/bin/python" ]]; then
  uv venv --quiet --clear --python "$python" "$HOME/venv"
fi
uv pip install --quiet --python "$HOME/venv/bin/python" '.[tpu,gcs]'
