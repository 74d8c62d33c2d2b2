# The worker's container: `cpu`, which is the default, and `cuda`, for NVIDIA GPUs. Neither has the
# training or the demonstration in it, nor a shell. docs/container.md says how to build, run and
# check it; `make container-test` runs these stages without Docker.
#
#   docker build --tag fusioncap:0.1.0 .
#   docker build --tag fusioncap:0.1.0-cuda --target cuda .

ARG RUST_IMAGE=rust:1.95-slim-bookworm
ARG DEBIAN_IMAGE=debian:12.12-slim
# Such as sha256:...; a tag can be moved, a digest can't.
ARG RUST_DIGEST=
ARG DEBIAN_DIGEST=

# --- The binary. cargo-chef makes a layer of the dependencies, which is built again only when
# Cargo.toml or Cargo.lock changes. A cache mount would be lost on a builder that starts empty, as
# in most CI; a layer goes through a registry (--cache-to, --cache-from).

FROM ${RUST_IMAGE}${RUST_DIGEST:+@${RUST_DIGEST}} AS compiler
# Debian's stable release has one version of each, and an older one only without its security fixes.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends \
        cmake g++ libcurl4-openssl-dev libssl-dev make nasm pkg-config zlib1g-dev \
    && rm -rf /var/lib/apt/lists/*
RUN cargo install --quiet --locked --version 0.1.78 cargo-chef && rm -r /usr/local/cargo/registry
WORKDIR /src
# A dev-dependency: Cargo reads its manifest, and compiles nothing of it here.
COPY tests/kit/Cargo.toml tests/kit/
RUN mkdir tests/kit/src && touch tests/kit/src/lib.rs

FROM compiler AS recipe
COPY Cargo.toml Cargo.lock ./
COPY benches benches
COPY src src
RUN cargo chef prepare --recipe-path recipe.json

FROM compiler AS dependencies
COPY --from=recipe /src/recipe.json ./
RUN cargo chef cook --release --locked --no-default-features --recipe-path recipe.json

FROM dependencies AS build
COPY Cargo.toml Cargo.lock ./
COPY benches benches
COPY src src
COPY schemas schemas
RUN cargo build --release --locked --no-default-features

# Of the dependencies only `ort` differs.
FROM dependencies AS build-cuda
COPY Cargo.toml Cargo.lock ./
COPY benches benches
COPY src src
COPY schemas schemas
RUN cargo build --release --locked --no-default-features --features cuda

# --- What else is in the image.

FROM ${DEBIAN_IMAGE}${DEBIAN_DIGEST:+@${DEBIAN_DIGEST}} AS tools
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends python3 python3-pip \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src

FROM tools AS onnxruntime
COPY scripts/onnxruntime scripts/
RUN scripts/onnxruntime

FROM tools AS onnxruntime-cuda
COPY scripts/onnxruntime scripts/
RUN scripts/onnxruntime --cuda

FROM tools AS cuda-libraries
COPY container/cuda container/cuda-packages.txt container/
RUN container/cuda /cuda

# libstdc++6 is ONNX Runtime's, the others are the binary's.
FROM tools AS root
COPY container/root container/
RUN container/root /root-of-image ca-certificates libcurl4 libssl3 libstdc++6 zlib1g

# --- The bill of materials.

# What the binary is linked from, by feature; proc macros and build scripts are not in it.
FROM ${RUST_IMAGE}${RUST_DIGEST:+@${RUST_DIGEST}} AS inventory
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY tests/kit/Cargo.toml tests/kit/
RUN mkdir tests/kit/src && touch tests/kit/src/lib.rs
COPY benches benches
COPY src src
RUN cargo metadata --locked --format-version 1 >metadata.json \
    && cargo tree --locked --edges normal,no-proc-macro --prefix none --format '{p}' \
        --no-default-features >linked.txt \
    && cargo tree --locked --edges normal,no-proc-macro --prefix none --format '{p}' \
        --no-default-features --features cuda >linked-cuda.txt

FROM tools AS materials
COPY container/materials container/
COPY --from=inventory /src/metadata.json /src/linked.txt /src/linked-cuda.txt ./
COPY --from=root /root-of-image /root-of-image

FROM materials AS materials-cpu
COPY --from=onnxruntime /src/.tools/onnxruntime onnxruntime
RUN container/materials --crates metadata.json --linked linked.txt --root /root-of-image \
        --wheel onnxruntime/doc onnxruntime/lib >sbom.cdx.json

FROM materials AS materials-cuda
COPY --from=onnxruntime-cuda /src/.tools/onnxruntime-cuda onnxruntime
COPY --from=cuda-libraries /cuda/doc cuda
RUN container/materials --crates metadata.json --linked linked-cuda.txt --root /root-of-image \
        --wheel onnxruntime/doc onnxruntime/lib --wheels cuda >sbom.cdx.json

# --- The image. What changes least comes first.

FROM scratch AS base
COPY --from=root /root-of-image /
COPY LICENSE /usr/share/doc/fusioncap/
COPY container/worker.yaml /etc/fusioncap/worker.yaml
COPY models/tiny /usr/share/fusioncap/models/tiny
ENV PATH=/usr/local/bin \
    FUSIONCAP_CONFIG=/etc/fusioncap/worker.yaml \
    ORT_DYLIB_PATH=/usr/local/lib/onnxruntime/libonnxruntime.so
# By number: Kubernetes can't tell that a name is not root.
USER 65532:65532
# Where `fusioncap caption` looks for models/tiny.
WORKDIR /usr/share/fusioncap
EXPOSE 8080
# The worker handles SIGTERM itself, as process 1 too.
STOPSIGNAL SIGTERM
# Whether the process works, not whether it has partitions: /readyz is for that.
HEALTHCHECK --interval=10s --timeout=5s --start-period=2m --retries=6 \
    CMD ["fusioncap", "healthcheck"]
ENTRYPOINT ["fusioncap"]
CMD ["worker"]
LABEL org.opencontainers.image.title="fusioncap" \
      org.opencontainers.image.description="Image references on Kafka become captions, exactly once" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="https://github.com/fusioncap/fusioncap" \
      org.opencontainers.image.url="https://github.com/fusioncap/fusioncap" \
      org.opencontainers.image.documentation="https://github.com/fusioncap/fusioncap/blob/main/docs/container.md" \
      org.opencontainers.image.vendor="fusioncap"

FROM base AS cuda
COPY --from=cuda-libraries /cuda/lib /usr/local/lib/cuda
COPY --from=cuda-libraries /cuda/doc /usr/share/doc
COPY --from=onnxruntime-cuda /src/.tools/onnxruntime-cuda/doc /usr/share/doc/onnxruntime
COPY --from=onnxruntime-cuda /src/.tools/onnxruntime-cuda/lib /usr/local/lib/onnxruntime
COPY --from=materials-cuda /src/sbom.cdx.json /usr/share/doc/fusioncap/
COPY --from=build-cuda /src/target/release/fusioncap /usr/local/bin/
# cuDNN opens its parts by name. The other two ask NVIDIA's container toolkit for the driver.
ENV LD_LIBRARY_PATH=/usr/local/lib/cuda \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.version="${VERSION}-cuda" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"

FROM base AS cpu
COPY --from=onnxruntime /src/.tools/onnxruntime/doc /usr/share/doc/onnxruntime
COPY --from=onnxruntime /src/.tools/onnxruntime/lib /usr/local/lib/onnxruntime
COPY --from=materials-cpu /src/sbom.cdx.json /usr/share/doc/fusioncap/
COPY --from=build /src/target/release/fusioncap /usr/local/bin/
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
