# shadowft_jax in an image, which launch/jobset.yaml names.
#
#   docker build -t shadowft_jax:latest .                           CPU
#   docker build -t shadowft_jax:latest --build-arg EXTRA=cuda13 .  NVIDIA GPUs, CUDA 13
#   docker build -t shadowft_jax:latest --build-arg EXTRA=tpu .     TPUs
#   docker run shadowft_jax:latest train --help
#
# Not built where it was written, which has no Docker: tests/test_docker.py runs its RUN steps in a
# virtual environment instead.
FROM python:3.11-slim

ARG EXTRA=""
WORKDIR /opt/shadowft_jax

COPY setup.py pyproject.toml constraints.txt README.md LICENSE ./
COPY configs configs
COPY launch launch
COPY shadowft_jax shadowft_jax
RUN python -m pip install --no-cache-dir --disable-pip-version-check -c constraints.txt ".${EXTRA:+[$EXTRA]}"

WORKDIR /work
ENTRYPOINT ["shadowft"]
