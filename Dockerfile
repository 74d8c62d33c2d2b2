# The worker's container: CPU only, without training and without the demonstration.
#
#   docker build --tag fusioncap .
#   docker run --volume "$PWD/worker.yaml:/etc/fusioncap/worker.yaml:ro" fusioncap
#
# Needs BuildKit (the default since Docker 23) or Buildah for the cache mounts. models/tiny is
# in the image as /usr/share/fusioncap/models/tiny; other models are mounted or fetched from S3.

FROM rust:1.95-slim-bookworm AS build
RUN apt-get update && apt-get install --yes --no-install-recommends \
        cmake g++ libcurl4-openssl-dev libssl-dev make nasm pkg-config zlib1g-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY benches benches
COPY src src
COPY schemas schemas
# What is in a cache mount is not in the image: hence the copy.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --no-default-features \
    && cp target/release/fusioncap /usr/local/bin/fusioncap

FROM debian:12.12-slim AS onnxruntime
RUN apt-get update && apt-get install --yes --no-install-recommends python3 python3-pip \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY scripts/onnxruntime scripts/onnxruntime
RUN scripts/onnxruntime

FROM debian:12.12-slim
LABEL org.opencontainers.image.title="fusioncap" \
      org.opencontainers.image.description="Image references on Kafka become captions, exactly once" \
      org.opencontainers.image.licenses="Apache-2.0"
# libstdc++6 is ONNX Runtime's, the others are the binary's.
RUN apt-get update && apt-get install --yes --no-install-recommends \
        ca-certificates libcurl4 libssl3 libstdc++6 zlib1g \
    && rm -rf /var/lib/apt/lists/*
COPY LICENSE /usr/share/doc/fusioncap/
COPY models/tiny /usr/share/fusioncap/models/tiny
COPY --from=onnxruntime /src/.tools/onnxruntime/lib /usr/local/lib/onnxruntime
COPY --from=build /usr/local/bin/fusioncap /usr/local/bin/fusioncap
ENV ORT_DYLIB_PATH=/usr/local/lib/onnxruntime/libonnxruntime.so
# By number: Kubernetes can't tell that a name is not root.
USER 65532:65532
EXPOSE 8080
# The worker handles SIGTERM itself, as process 1 too.
STOPSIGNAL SIGTERM
ENTRYPOINT ["fusioncap"]
CMD ["worker", "--config", "/etc/fusioncap/worker.yaml"]
