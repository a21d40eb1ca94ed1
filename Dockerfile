# The project on TPUs of GKE, for python -m launch.gke.jobset --image=IMAGE:
#
#   docker build --tag IMAGE . && docker push IMAGE
#
# The video service needs other extras: see launch/gke/serve.yaml.
FROM python:3.12-slim

WORKDIR /spacetime
COPY setup.py pyproject.toml README.md LICENSE ./
COPY spacetime spacetime
COPY experiments experiments
ARG EXTRAS=tpu,gcs
# Editable, so that --config=experiments/NAME.py is found in this folder.
RUN pip install --no-cache-dir --editable ".[$EXTRAS]"
