# make run     the environment, then the lecture's MNIST program
# make test    the tests, offline; `make peers` those against PyTorch
# make check   ruff and types
# make smoke   every experiment, small
# make bench   timings beside PyTorch; make results the tables in README.md and docs/results.md

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

.PHONY: run test peers check smoke bench results clean

run: .venv/.run
	@set -e; dataset=$$($(BIN)/python -m dlc.data --first-of mnist digits); \
	$(BIN)/python -m experiments.mnist.convnet --dataset $$dataset

test: .venv/.dev
	$(BIN)/python -m pytest -m 'not peers'

peers: .venv/.peers
	$(BIN)/python -m pytest -m peers

check: .venv/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

smoke: .venv/.run
	@set -e; for file in experiments/*/[!_]*.py; do case $$file in experiments/bench/*) continue;; esac; \
	module=$$(echo $${file%.py} | tr / .); echo "== $$module"; $(BIN)/python -m $$module --smoke; done

bench: .venv/.peers
	$(BIN)/python -m experiments.bench.mnist

results: .venv/.run
	$(BIN)/python -m dlc.results

clean:
	rm -rf .venv build *.egg-info

# Each stamp is an environment with one more set of packages than the one before.
.venv/.run: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) .
	@touch $@

.venv/.dev: .venv/.run
	$(INSTALL) '.[dev]'
	@touch $@

.venv/.peers: .venv/.dev
	$(INSTALL) '.[dev,peers]'
	@touch $@
