# The project on TPUs of GKE, for python -m launch.gke.jobset --image=IMAGE:
#
#   docker build --tag IMAGE . && docker push IMAGE
FROM python:3.12-slim

WORKDIR /spacetime
COPY setup.py pyproject.toml README.md LICENSE ./
COPY spacetime spacetime
COPY experiments experiments
# Editable, so that --config=experiments/NAME.py is found in this folder.
RUN pip install --no-cache-dir --editable '.[tpu,gcs]'
