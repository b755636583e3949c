# syntax=docker/dockerfile:1
# CPU:   docker build --tag armada .
# CUDA:  docker build --tag armada:cuda --build-arg BASE=nvidia/cuda:12.8.1-base-ubuntu24.04 .
# Run:   docker run --rm --volume "$PWD:/data" --user "$(id -u):$(id -g)" armada precompute ...
# TORCH_INDEX: the index of packages that torch comes from, if not the usual one. PyTorch has one of
# builds without CUDA, which make the image for CPUs smaller by several GB.
ARG BASE=ubuntu:24.04
FROM ${BASE}

RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv ca-certificates \
    && rm -rf /var/lib/apt/lists/*

ENV PATH=/opt/armada/bin:$PATH PYTHONUNBUFFERED=1
RUN python3 -m venv /opt/armada

# torch by itself and first: it is most of the image, and stays as it is when the code changes.
ARG TORCH_INDEX
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install 'torch>=2.11' ${TORCH_INDEX:+--index-url "$TORCH_INDEX"}

ARG EXTRAS=all
COPY . /source
RUN --mount=type=cache,target=/root/.cache/pip pip install "/source[${EXTRAS}]" && rm -rf /source

# Corpora, caches and runs are mounted at /data; models that are downloaded stay there, too. Tokens
# of the Hub are given at run time (HF_TOKEN), never built in.
RUN userdel --remove ubuntu 2>/dev/null || true; useradd --uid 1000 --create-home armada \
    && mkdir /data && chown armada /data
ENV HF_HOME=/data/models
USER armada
WORKDIR /data
VOLUME /data
ENTRYPOINT ["armada"]
CMD ["--help"]
