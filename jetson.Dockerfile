# syntax=docker/dockerfile:1
# What a Jetson AGX Orin runs: edgekit[device] on Ubuntu, with NVIDIA's TensorRT (docs/container.md).
#   docker buildx build --platform linux/arm64 -f jetson.Dockerfile -t edgekit:jp72 .
# JETPACK: 7.2 or 6.2. ENGINE: tensorrt, or onnxruntime for a small image without CUDA.
ARG JETPACK=7.2
ARG ENGINE=tensorrt

# Ubuntu and NVIDIA's repository rather than an l4t image: none is sure to exist for R39.
FROM ubuntu:24.04 AS jetpack-7.2
ENV L4T_SUITE=r39.2 \
    CUDA_PACKAGES=13-2 \
    TENSORRT_VERSION=10.16.2.10-1+cuda13.2 \
    CUDA_BINDINGS_VERSION=13.2.0 \
    EDGEKIT_CONSTRAINTS=constraints.txt

# Python 3.10: ONNX Runtime ends at 1.23.2 there, so the pins are its own.
FROM ubuntu:22.04 AS jetpack-6.2
ENV L4T_SUITE=r36.4 \
    CUDA_PACKAGES=12-6 \
    TENSORRT_VERSION=10.3.0.30-1+cuda12.5 \
    CUDA_BINDINGS_VERSION=12.9.10 \
    EDGEKIT_CONSTRAINTS=constraints-jp62.txt

# hadolint ignore=DL3006
FROM jetpack-${JETPACK} AS onnxruntime
# Ubuntu's own packages follow its security updates: no versions.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 \
    && rm -rf /var/lib/apt/lists/*

FROM onnxruntime AS tensorrt
ADD --chmod=644 https://repo.download.nvidia.com/jetson/jetson-ota-public.asc \
    /usr/share/keyrings/nvidia-jetson.asc
# The pin holds TensorRT and all it depends on at the JetPack's version: engines, timing caches and
# the bundles' version ranges belong to it, and NVIDIA's other repositories offer their own.
# hadolint ignore=DL3008
RUN echo "deb [signed-by=/usr/share/keyrings/nvidia-jetson.asc] https://repo.download.nvidia.com/jetson/common ${L4T_SUITE} main" \
        > /etc/apt/sources.list.d/nvidia-jetson.list \
    && printf 'Package: *nvinfer* *nvonnxparsers*\nPin: version %s\nPin-Priority: 1001\n' \
        "${TENSORRT_VERSION}" > /etc/apt/preferences.d/tensorrt \
    && apt-get update \
    && apt-get install -y --no-install-recommends \
        "cuda-cudart-${CUDA_PACKAGES}" \
        "python3-libnvinfer=${TENSORRT_VERSION}" \
    && rm -rf /var/lib/apt/lists/*

FROM onnxruntime AS build
ARG ENGINE
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# System packages stay visible: TensorRT's Python module comes from apt. Wheels only, so that nothing
# is compiled; pip itself stays behind. CUDA's bindings are of the JetPack's major version of CUDA.
RUN python3 -m venv --system-site-packages /opt/edgekit \
    && if [ "${ENGINE}" = tensorrt ]; then \
        set -- ".[device,serve,tensorrt]" "cuda-bindings==${CUDA_BINDINGS_VERSION}"; \
    else \
        set -- ".[device,serve]"; \
    fi \
    && /opt/edgekit/bin/pip install --no-cache-dir --only-binary=:all: \
        --constraint "${EDGEKIT_CONSTRAINTS}" "$@" \
    && /opt/edgekit/bin/pip check \
    && /opt/edgekit/bin/pip uninstall -y pip setuptools

# hadolint ignore=DL3006
FROM ${ENGINE} AS device
LABEL org.opencontainers.image.title="edgekit" \
    org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/edgekit /opt/edgekit
# The group video owns the GPU's device files.
RUN useradd --no-log-init --uid 10001 --user-group --groups video --no-create-home \
        --home-dir /var/lib/edgekit --shell /usr/sbin/nologin edgekit \
    && install -d -o edgekit -g edgekit -m 0750 /var/lib/edgekit \
    && install -d /etc/edgekit \
    && printf '[serve]\nbundle = "/var/lib/edgekit/bundle"\nhost = "0.0.0.0"\n' > /etc/edgekit/agent.toml
ENV PATH=/opt/edgekit/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    EDGEKIT_BUNDLE=/var/lib/edgekit/bundle \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
# All that is ever written; the root may be read-only.
VOLUME /var/lib/edgekit
WORKDIR /var/lib/edgekit
USER 10001
# Asks the agent's /healthz where its configuration says that it listens.
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-m", "device", "--health"]
# `edgekit` stands beside it: docker run ... edgekit:jp72 edgekit doctor --device
CMD ["python", "-m", "device"]
