# Each target makes what it needs; `make` alone lists them.

# The newest Python from 3.11 to 3.13 that is there; `make PYTHON=/path/to/python3.12 ...` picks another.
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
	if $$name -c 'import sys; raise SystemExit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; \
	then echo $$name; break; fi; done)
VENV := .venv
BIN := $(VENV)/bin
SOURCES := datarater rater_model meta_training pipelines deploy tests setup.py

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

.PHONY: demo
demo: $(VENV)/.demo  ## meta-train a rater on the built-in corpus and curate the corpus with it
	$(BIN)/python -m datarater.meta_training.demo.demo --output demo_output

.PHONY: test
test: lint types fast-tests slow-tests  ## lint, type-check and run all tests

.PHONY: fast-tests
fast-tests: $(VENV)/.test  ## run the tests that take seconds
	$(BIN)/python -m pytest -n 2 -m "not slow"

.PHONY: slow-tests
slow-tests: $(VENV)/.test  ## run the tests that take longer
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m slow

.PHONY: lint
lint: $(VENV)/.test  ## check style and format
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

.PHONY: types
types: $(VENV)/.test  ## check types
	$(BIN)/mypy

.PHONY: format
format: $(VENV)/.test  ## mend style and format
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

.PHONY: flink
flink: $(VENV)/.demo  ## bring up a Flink cluster on this machine: two task managers with worker pools, Beam's job server
	@$(BIN)/python -m deploy.flink up

.PHONY: flink-down
flink-down:  ## take it down
	@test ! -x $(BIN)/python || $(BIN)/python -m deploy.flink down

.PHONY: prism
prism: .prism/prism  ## build Prism, Beam's portable local runner, for --runner=PrismRunner

.PHONY: readme
readme: $(VENV)/.test  ## make the README's tables of flags anew
	$(BIN)/python -m tests.support.readme_tables

.PHONY: templates
templates: $(VENV)/.test  ## make the Flex Templates' metadata anew
	$(BIN)/python -m tests.support.flex_templates

.PHONY: lock
lock: $(VENV)/.test  ## pin everything anew in constraints.txt
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --upgrade --python-version 3.11 --fork-strategy fewest --all-extras \
		--no-annotate --no-header --no-emit-index-url --output-file constraints.txt setup.py

.PHONY: clean
clean: flink-down  ## remove the environment, the demo's output and caches
	rm -rf $(VENV) .flink .prism demo_output build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Of the same version as apache-beam in constraints.txt.
.prism/prism: constraints.txt
	@command -v go >/dev/null || { echo "Prism is built with Go, which is not here: https://go.dev/doc/install" >&2; exit 1; }
	@echo "building Prism: two or three minutes, once"
	GOBIN=$(CURDIR)/.prism go install "github.com/apache/beam/sdks/v2/go/cmd/prism@v$$(sed -n 's/^apache-beam==\([0-9.]*\).*/\1/p' constraints.txt)"
	@touch $@

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 found; say where: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "Python's venv module is not whole; on Debian and Ubuntu: apt install python3-venv" >&2; rm -rf $(VENV); exit 1; }

# The stamps make a second run start at once. Tests need all that the demo needs, and more.
$(VENV)/.demo: $(VENV)/bin/python setup.py constraints.txt
	@test -e $(VENV)/.test -a ! setup.py -nt $(VENV)/.test -a ! constraints.txt -nt $(VENV)/.test || \
		{ echo "installing into $(VENV): a minute or two, once"; \
		PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[train]'; }
	@touch $@

$(VENV)/.test: $(VENV)/bin/python setup.py constraints.txt
	@echo "installing into $(VENV): two minutes or so, once"
	@PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[train,gcp,dev]'
	@touch $@ $(VENV)/.demo
