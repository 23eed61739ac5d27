# Each target does its own set-up. After `make libtorch`, plain cargo works, too.

.PHONY: help demo compare chaos bench build microbench programs test simulate lint docs fuzz audit parity
.PHONY: score-parity elastic-comparison dashboards libtorch verify
.PHONY: test-docs test-export test-gpu test-images test-journey test-kubernetes test-page test-prometheus test-slurm
.DEFAULT_GOAL := demo

# Tests run several processes on the same cores, so each process computes on one thread.
export OMP_NUM_THREADS ?= 1
compare: SEEDS ?= 1,2,3
simulate: SEEDS ?= 10000
fuzz: FUZZ_INPUTS ?= 20000
# Duration of `make chaos`.
CHAOS_MINUTES ?= 3

## List the targets.
help:
	@awk '/^## ?/ { text = text "\n                      " substr($$0, 4) } \
		/^[a-z-]+:/ && text { printf "%-20s%s\n", substr($$1, 1, length($$1) - 1), substr(text, 22) } \
		!/^## ?/ { text = "" }' $(firstword $(MAKEFILE_LIST))

## Train an evaluator and a captioner from scratch and fine-tune with DiCO, on this machine: README.md.
demo: programs
	target/debug/demo

## Compare all objectives from one captioner with equal budgets: docs/results.md. SEEDS=1,2,3.
compare: programs
	target/debug/compare --seeds $(SEEDS)

## Kill, suspend and restart real processes for CHAOS_MINUTES=3, and report the cost: runs/chaos/summary.json.
chaos: programs
	target/debug/chaos --minutes $(CHAOS_MINUTES)

## Time small parts: order of samples, tokens, pixels, CIDEr, state machine, audits. A release build, which takes long.
microbench: libtorch
	cargo bench --locked -p dico-worker -p image-preprocess -p caption-metrics -p dico-coordinator --bench samples --bench pixels --bench cider --bench steps --bench audit

## Run all checks that must pass before a merge. Installs Debian packages as root. Takes up to 45 minutes from a
## fresh clone on two cores. Checks that need root fail without it.
verify:
	GPU="--device cpu --short" tools/run-checks build lint docs test test-page test-kubernetes test-docs test-export test-journey test-prometheus+test-slurm test-gpu

## Run all unit and end-to-end tests, with real processes on loopback.
test: libtorch
	cargo test --workspace --locked
	cd tests/bench && python3 -B -m unittest --quiet
	cd tests/gpu && python3 -B -m unittest --quiet

## Test deploy/slurm under a real Slurm on this machine. Needs root.
test-slurm: programs
	tests/slurm/run

## Test rules, alerts and dashboards with a real Prometheus that scrapes a real run with faults.
test-prometheus: programs
	tests/prometheus/run

## Generate deploy/grafana/dashboards from deploy/grafana/source.
dashboards:
	tests/prometheus/run dashboards

## Test the page in headless Chromium, with a real coordinator and a real worker.
test-page: programs
	tests/web-page/run

## Run every command of every document, and check links. Needs network namespaces.
test-docs: programs
	tests/docs/run

## Compare exported captioners and evaluators in transformers with `worker caption` and `worker score`. Needs 2 GB of disk.
test-export: programs
	tests/export/run

## Test a user's journey: data formats, a run with changed settings and data, an export that transformers loads.
test-journey: programs
	tests/user-journey/run

## Build the CPU images with buildah and run them. Needs root, and a network for Debian packages.
test-images: programs
	tests/deploy/run built_images

## Test manifests, images and compose.yaml of deploy/ without a cluster or container engine. Some tests need root.
test-kubernetes: programs
	tests/deploy/run

## Test and time computations on a GPU, in 8 minutes: runs/gpu/summary.json. Without a GPU: GPU="--device cpu --short".
test-gpu: libtorch
	tests/gpu/build
	tests/gpu/run $(GPU)

## Simulate the control plane in virtual time, SEEDS=10000. A failing seed prints the command that replays it.
simulate:
	SEEDS=$(SEEDS) cargo test -p dico-coordinator --lib --locked simulation::seeds -- --nocapture

## Check formatting, run files that are copies, language, shell scripts and clippy; warnings are errors.
lint: libtorch
	cargo fmt --all --check
	tools/generate-configs --check
	tests/naming-and-prose/check
	tests/module-cycles/check
	! cargo tree --locked --package dico-engine --edges normal | grep -wE 'tokio|tonic|axum|hyper|rusqlite'
	! cargo tree --locked --package journal --edges normal | grep -wE 'tokio|tonic|axum|hyper'
	! cargo tree --locked --workspace --edges normal --invert rusqlite --depth 1 --prefix none | grep -vE '^(rusqlite |journal |$$)'
	tools/install-packages git shellcheck
	shellcheck --external-sources --severity=warning deploy/slurm/common.sh $$(git grep -lE '^#!/(usr/)?bin/(env )?(ba)?sh')
	cargo clippy --workspace --all-targets --locked -- -D warnings

## Build the documentation of all crates; warnings, such as broken links, are errors.
docs: libtorch
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --workspace --no-deps --document-private-items --locked

## Feed every parser of untrusted input with mutated examples, FUZZ_INPUTS=20000 for each. tests/fuzz is for cargo-fuzz.
fuzz: libtorch
	FUZZ_INPUTS=$(FUZZ_INPUTS) cargo test -p fuzz-targets --locked

## Check licences, sources and known vulnerabilities (where their database is reachable) of dependencies. Needs cargo-deny.
audit:
	tools/audit-dependencies

## Compare models, tokens, pixels and folders with transformers, open_clip and torchvision at full size. Needs 12 GB of disk.
parity: libtorch
	tests/parity/run full
	tests/parity/check

## Compare caption metrics, tokens and speed with pycocoevalcap; CAPTIONS is a file of lines IMAGE#N<TAB>CAPTION. Needs Java.
score-parity:
	tests/parity/score $(CAPTIONS)

## Benchmark against PyTorch, transformers and Pillow: a table, and runs/bench/summary.json. BENCH="--only input" runs
## one comparison, BENCH="--device cuda:0" those of a step on a GPU. Needs 5 GB of disk.
bench: libtorch
	cargo build --release -p dico-coordinator -p dico-worker --bins --locked
	tests/bench/run $(BENCH)

## Compare recovery of dico, torchrun elastic and torchft: docs/results.md. Half an hour; needs 5 GB of disk.
elastic-comparison: libtorch
	tests/elastic/run

# All targets select the same packages (`--workspace`): with another selection cargo would build the
# dependencies again with other features.
## Build the programs, as users and tests run them.
programs: libtorch
	cargo build --workspace --bins --locked

## Build the programs and all tests.
build: programs
	cargo test --workspace --locked --no-run

## Fetch a CPU libtorch into .libtorch, unless LIBTORCH or LIBTORCH_USE_PYTORCH names one.
libtorch:
ifeq ($(LIBTORCH)$(LIBTORCH_USE_PYTORCH),)
	@tools/fetch-libtorch
endif
