# Every target does all of its own set-up. After `make libtorch`, plain cargo works too.

.PHONY: demo compare chaos bench build microbench programs test simulate lint audit parity
.PHONY: score-parity elastic-comparison dashboards libtorch verify
.PHONY: test-docs test-export test-gpu test-images test-journey test-kubernetes test-page test-prometheus test-slurm
.DEFAULT_GOAL := demo

# Two or more processes share the cores here; each computes on one thread.
export OMP_NUM_THREADS ?= 1
compare: SEEDS ?= 1,2,3
simulate: SEEDS ?= 10000
# Of `make chaos`.
CHAOS_MINUTES ?= 3

## Train, fine-tune and compare on this machine: see README.md.
demo: programs
	target/debug/demo

## Every objective from one captioner with equal budgets: docs/results.md. SEEDS=4,5 for other seeds than 1,2,3.
compare: programs
	target/debug/compare --seeds $(SEEDS)

## Real processes that are killed, stopped and started again for CHAOS_MINUTES, and what it cost: runs/chaos/summary.json.
chaos: programs
	target/debug/chaos --minutes $(CHAOS_MINUTES)

## What small parts take: order of samples, tokens, pixels, CIDEr, the coordinator's state machine, audits. Optimised, so it builds for long.
microbench: libtorch
	cargo bench --locked -p dico-worker -p dico-dataset -p dico-scoring -p dico-coordinator --bench samples --bench pixels --bench cider --bench steps --bench audit

## All that must pass before a change lands. It installs what it needs (Debian's packages, as root), and
## takes up to 45 minutes from a fresh clone on two cores. Without root, what needs it fails.
verify:
	GPU="--device cpu --short" tools/verify build lint test test-page test-kubernetes test-docs test-export test-journey test-prometheus+test-slurm test-gpu

## All tests, with real processes on loopback.
test: libtorch
	cargo test --workspace --locked
	cd tests/bench && python3 -B -m unittest --quiet
	cd tests/gpu && python3 -B -m unittest --quiet

## deploy/slurm under a real Slurm on this machine. Needs root.
test-slurm: programs
	tests/slurm/run

## Rules, alerts and dashboards against a real Prometheus that watches a real run with faults.
test-prometheus: programs
	tests/prometheus/run

## Grafana's dashboards, deploy/grafana/dashboards, from deploy/grafana/source.
dashboards:
	tests/prometheus/run dashboards

## The page in headless Chromium, with a real coordinator and a real worker.
test-page: programs
	tests/page/run

## Every command of every document, and the links between them. Needs network namespaces.
test-docs: programs
	tests/documents/run

## Exported captioners and evaluators in transformers, beside `worker caption` and `worker score`. Needs 2 GB of disk.
test-export: programs
	tests/export/run

## A user's whole journey from outside: own data, a run that is changed on the way, an export that transformers loads.
test-journey: programs
	tests/journey/run

## The images for CPUs, built by buildah and run. Needs root, and Debian's packages from the network.
test-images: programs
	tests/deploy/run built

## Manifests, images and the composition of deploy/, without a cluster or an engine. As root all of it.
test-kubernetes: programs
	tests/deploy/run

## What a GPU computes and how fast, in 8 minutes: runs/gpu/summary.json. GPU="--device cpu --short" runs all of it without one.
test-gpu: libtorch
	tests/gpu/build
	tests/gpu/run $(GPU)

## The control plane in virtual time, with SEEDS seeds (10000). A seed that fails says how it is run again.
simulate:
	SEEDS=$(SEEDS) cargo test -p dico-coordinator --lib --locked simulation::seeds -- --nocapture

## Formatting, run files that are copies, shell scripts and clippy; warnings are errors.
lint: libtorch
	cargo fmt --all --check
	tools/run-files --check
	tools/require git shellcheck
	shellcheck --external-sources --severity=warning deploy/slurm/common.sh $$(git grep -lE '^#!/(usr/)?bin/(env )?(ba)?sh')
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

## The programs, as users and tests run them.
##
## It is the same selection of packages everywhere (`--workspace`): for another selection cargo would
## build dependencies again, with other features.
programs: libtorch
	cargo build --workspace --bins --locked

## The programs and all tests.
build: programs
	cargo test --workspace --locked --no-run

## A CPU libtorch in .libtorch, unless the user has one (LIBTORCH, LIBTORCH_USE_PYTORCH).
libtorch:
ifeq ($(LIBTORCH)$(LIBTORCH_USE_PYTORCH),)
	@tools/fetch-libtorch
endif
