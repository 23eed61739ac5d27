# Every target does all of its own set-up. After `make libtorch`, plain cargo works too.

.PHONY: demo compare chaos bench microbench test simulate lint audit parity score-parity elastic-comparison dashboards libtorch
.PHONY: test-docs test-gpu test-images test-kubernetes test-operations test-page test-prometheus test-slurm
.DEFAULT_GOAL := demo

# Two or more processes share the cores here; each computes on one thread.
export OMP_NUM_THREADS ?= 1
compare: SEEDS ?= 1,2,3
simulate: SEEDS ?= 10000
# Of `make chaos`.
CHAOS_MINUTES ?= 3

## Train, fine-tune and compare on this machine: see README.md.
demo: libtorch
	cargo build --workspace --bins --locked
	target/debug/demo

## Every objective from one captioner with equal budgets: docs/results.md. SEEDS=4,5 for other seeds than 1,2,3.
compare: libtorch
	cargo build --workspace --bins --locked
	target/debug/compare --seeds $(SEEDS)

## Real processes that are killed, stopped and started again for CHAOS_MINUTES, and what it cost: runs/chaos/summary.json.
chaos: libtorch
	cargo build -p dico-coordinator -p dico-worker -p dico-tests --bins --locked
	target/debug/chaos --minutes $(CHAOS_MINUTES)

## What small parts take: order of samples, tokens, pixels, CIDEr, the coordinator's state machine. Optimised, so it builds for long.
microbench: libtorch
	cargo bench --locked -p dico-worker -p dico-dataset -p dico-scoring -p dico-coordinator --bench samples --bench pixels --bench cider --bench steps

## All tests, with real processes on loopback.
test: libtorch
	cargo test --workspace --locked
	cd tests/bench && python3 -B -m unittest --quiet
	cd tests/gpu && python3 -B -m unittest --quiet

## deploy/slurm under a real Slurm on this machine. Needs root, and Debian's packages, which it installs.
test-slurm: libtorch
	cargo build -p dico-coordinator -p dico-worker --bins --locked
	tests/slurm/run

## Rules, alerts and dashboards against a real Prometheus that watches a real run with faults. Needs prometheus (apt) and pip.
test-prometheus: libtorch
	cargo build -p dico-coordinator -p dico-worker --bins --locked
	tests/prometheus/run

## Grafana's dashboards, deploy/grafana/dashboards, from deploy/grafana/source. Needs pip.
dashboards:
	tests/prometheus/run dashboards

## The page in headless Chromium, with a real coordinator and a real worker. Needs Node 20 and Chromium: docs/operations.md.
test-page: libtorch
	cargo build -p dico-coordinator -p dico-worker --bins --locked
	tests/page/run

## Every command of every document, and the links between them. Needs curl, openssl and network namespaces.
test-docs: libtorch
	cargo build -p dico-coordinator -p dico-worker --bins --locked
	tests/documents/run

## The images for CPUs, built by buildah and run. Needs root, buildah, debootstrap, and Debian's packages from the network.
test-images: libtorch
	cargo build -p dico-coordinator -p dico-worker --bins --locked
	tests/deploy/run built

## Manifests, images and the composition of deploy/, without a cluster or an engine. Needs kubectl or kustomize; as root all of it.
test-kubernetes: libtorch
	cargo build -p dico-coordinator -p dico-worker --bins --locked
	tests/deploy/run

## What a GPU computes and how fast, in 8 minutes: runs/gpu/summary.json. GPU="--device cpu --short" runs all of it without one.
test-gpu: libtorch
	tests/gpu/build
	tests/gpu/run $(GPU)

## All of these: what a run is operated with, used for real.
test-operations: test-page test-prometheus test-slurm test-kubernetes test-docs

## The control plane in virtual time, with SEEDS seeds (10000). A seed that fails says how it is run again.
simulate:
	SEEDS=$(SEEDS) cargo test -p dico-coordinator --lib --locked simulation::seeds -- --nocapture

## Formatting and clippy; warnings are errors.
lint: libtorch
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

## Licences, sources and versions of all dependencies, and known vulnerabilities where their database can be reached. Needs cargo-deny.
audit:
	tools/audit

## Models, tokens, pixels and folders against transformers, open_clip and torchvision at full size; needs 12 GB of disk.
parity: libtorch
	tests/parity/run full
	tests/parity/check

## Caption metrics, tokens and speed against pycocoevalcap; CAPTIONS is a file of lines IMAGE#N<TAB>CAPTION. Needs Java.
score-parity:
	tests/parity/score $(CAPTIONS)

## Ours beside PyTorch, transformers and Pillow in one go: a table, and runs/bench/summary.json. BENCH="--only input", for example, for
## one of the comparisons, BENCH="--device cuda:0" for those of a step on a GPU. Needs 5 GB of disk.
bench: libtorch
	cargo build --release -p dico-coordinator -p dico-worker --bins --locked
	tests/bench/run $(BENCH)

## One kill side by side: dico, torchrun elastic and torchft: docs/results.md. Half an hour; needs 5 GB of disk.
elastic-comparison: libtorch
	tests/elastic/run

## A CPU libtorch in .libtorch, unless the user has one (LIBTORCH, LIBTORCH_USE_PYTORCH).
libtorch:
ifeq ($(LIBTORCH)$(LIBTORCH_USE_PYTORCH),)
	@tools/fetch-libtorch
endif
