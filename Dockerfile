# Two images from one file, neither with a compiler, pip or a root process:
#
#   docker build --target gateway -t baton-gateway .
#   docker build --target worker  -t baton-worker  --build-arg PIP_EXTRA_INDEX_URL=... .
#   docker build --target worker  -t baton-worker-cuda --build-arg TORCH=cuda .
#
# TORCH=cpu wants torch's build for CPUs, which package indexes in general do not have: name one
# that does with PIP_EXTRA_INDEX_URL. TORCH=cuda takes what the index has, which is for CUDA.
ARG PYTHON=python:3.11-slim

FROM ${PYTHON} AS builder
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/opt/baton/bin:$PATH
WORKDIR /source
RUN python -m venv /opt/baton


FROM builder AS gateway-builder
COPY . .
RUN pip install -c constraints.txt '.[gateway,otel,etcd,tui]' \
    && pip uninstall -y setuptools pip


FROM builder AS worker-builder
ARG TORCH=cpu
COPY constraints.txt .
# First and alone, as it is large and seldom changes.
RUN set -eu; torch=$(grep '^torch==' constraints.txt); \
    case $TORCH in \
        cpu) pip install -c constraints.txt "$torch+cpu" || { \
            echo "no $torch+cpu in the package index: name one that has it with" \
                "--build-arg PIP_EXTRA_INDEX_URL, or build with TORCH=cuda" >&2; exit 1; } ;; \
        cuda) pip install -c constraints.txt "$torch" ;; \
        *) echo "TORCH is cpu or cuda, not $TORCH" >&2; exit 1 ;; \
    esac
COPY . .
RUN pip install -c constraints.txt '.[worker,otel,etcd]' \
    && pip uninstall -y setuptools pip \
    # What only serves to build against torch.
    && rm -rf /opt/baton/lib/python3.*/site-packages/torch/include \
        /opt/baton/lib/python3.*/site-packages/torch/share \
        /opt/baton/lib/python3.*/site-packages/torch/test


# The C kernels, once for each instruction set that a CPU may have: 0.6 MB instead of a compiler.
FROM builder AS kernels
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY model/__init__.py model/__init__.py
COPY model/kernels model/kernels
# Made for its owner alone; whoever a worker runs as may read it.
RUN XDG_CACHE_HOME=/opt/kernels python -m model.kernels && chmod -R a+rX /opt/kernels


FROM ${PYTHON} AS runtime
# tini: as process 1 a worker that still loads would not hear SIGTERM.
RUN apt-get update \
    && apt-get install -y --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --create-home --shell /usr/sbin/nologin baton \
    && install -d -o baton -g baton /home/baton/.cache
ENV PATH=/opt/baton/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/home/baton/.cache/huggingface \
    BATON_HOST=0.0.0.0 BATON_MODEL=/models/demo BATON_SERVED_MODEL_NAME=baton-demo
WORKDIR /home/baton
COPY model/demo/checkpoint /models/demo
ENTRYPOINT ["tini", "--"]


FROM runtime AS gateway
COPY --from=gateway-builder /opt/baton /opt/baton
USER 10001:10001
EXPOSE 8000 8001 8002
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["baton", "health", "http://127.0.0.1:8000"]
CMD ["python", "-m", "gateway", "--membership", "dns:prefill:7000,decode:7000"]


FROM runtime AS worker
ARG TORCH=cpu
# Triton compiles what launches its kernels when a worker first starts on a GPU.
RUN if [ "$TORCH" = cuda ]; then \
        apt-get update \
        && apt-get install -y --no-install-recommends gcc libc6-dev \
        && rm -rf /var/lib/apt/lists/*; \
    fi
COPY --from=worker-builder /opt/baton /opt/baton
COPY --from=kernels /opt/kernels /opt/kernels
ENV XDG_CACHE_HOME=/opt/kernels TRITON_CACHE_DIR=/home/baton/.cache/triton \
    OMP_WAIT_POLICY=PASSIVE BATON_PORT=7000
USER 10001:10001
EXPOSE 7000 7001
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m \
    CMD ["baton", "health", "127.0.0.1:7000"]
CMD ["python", "-m", "decode_worker"]
