# Every target does its own set-up: a fresh clone needs Python >= 3.11, pip, make, git and npm; bench also wrk.
PORT ?= 3000
PYTHON ?= python3
BIN := .venv/bin
PROMETHEUS = $(BIN)/python -m tests.debian prometheus usr/bin/prometheus
SOURCES := compression variants service loadtests deploy tests
# Tests that keep one core busy each; the others measure time, or fill the machine with requests.
BUILDING := tests/compression tests/variants

.PHONY: help install demo test lint types format ops drill bench clean

help:  ## List the targets.
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: .venv/installed  ## Create .venv with everything that building, serving and testing need.

.venv/installed: pyproject.toml deploy/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
		{ echo "Mipgate needs Python 3.11 to 3.13; $(PYTHON) is `$(PYTHON) -V`. Set PYTHON=python3.12, say."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint deploy/constraints.txt \
		--editable '.[build,loadtest,dev]'
	@touch $@

demo: install  ## Build the digits model, pack a Bento, serve it on PORT and print a request per tier.
	$(BIN)/mipgate build digits --jobs 2 --quiet
	$(BIN)/mipgate serve --bento --port $(PORT)

lint: install
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

types: install
	$(BIN)/mypy

test: lint types  ## Lint, types and tests.
	$(BIN)/pytest --numprocesses logical --maxprocesses 4 --dist loadfile $(BUILDING)
	$(BIN)/pytest tests $(BUILDING:%=--ignore=%)

format: install  ## Format the code and mend what can be mended.
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

drill: install  ## Let things go wrong here, and see that exactly the promised alerts are raised.
	@program="$$($(PROMETHEUS))" && $(BIN)/python -m deploy.ops.drill --prometheus "$$program"

ops: install  ## Start gateway, Prometheus and a little load here, print what every panel says, stop it all.
	@program="$$($(PROMETHEUS))" && $(BIN)/mipgate build digits --quiet && \
		$(BIN)/python -m deploy.ops.show --prometheus "$$program"

bench: install  ## Measure Mipgate beside other servers: small and real model, overload (docs/benchmarks.md).
	$(BIN)/mipgate build digits --quiet
	$(BIN)/python -m loadtests.bench --out out/bench.json --markdown out/bench.md

clean:  ## Remove what the targets made here; the model store stays.
	rm -rf .venv out build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
