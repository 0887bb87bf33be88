# Each target makes what it needs. `make` alone lists the targets.

# The newest installed Python from 3.11 to 3.13. Another one: make PYTHON=/path/to/python3.12 ...
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
	if $$name -c 'import sys; raise SystemExit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; \
	then echo $$name; break; fi; done)
VENV := .venv
BIN := $(VENV)/bin
SOURCES := datarater rater_model meta_training pipelines deploy docs examples tests setup.py
# The tests of a group, such as those on the Flink cluster, run in one process.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder
PIP_INSTALL := PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

.PHONY: demo
demo: $(VENV)/.demo  ## meta-train a rater on a built-in corpus, curate with it, and measure its worth
	$(BIN)/datarater demo --output demo_output

.PHONY: test
test: lint types $(VENV)/.test  ## lint, check types and run all tests except the drills
	$(PYTEST) -m "not drill"

.PHONY: fast-tests
fast-tests: $(VENV)/.test  ## run the tests that take seconds
	$(PYTEST) -m "not slow and not drill"

.PHONY: drills
drills: $(VENV)/.drills  ## run the drills: repeated proofs, wheel, docs, notebook
	$(PYTEST) -m drill

.PHONY: lint
lint: $(VENV)/.test  ## check style and format
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

.PHONY: types
types: $(VENV)/.test  ## check types
	$(BIN)/mypy

.PHONY: format
format: $(VENV)/.test  ## fix style and format
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

.PHONY: docs
docs: $(VENV)/.drills  ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open site/index.html"

.PHONY: wheel
wheel: $(VENV)/.test  ## build the wheel and the source distribution into dist/
	rm -rf build dist
	$(BIN)/python -m build --outdir dist .

.PHONY: flink
flink: $(VENV)/.demo  ## start a Flink cluster on this machine: two task managers and Beam's job server
	@$(BIN)/python -m deploy.flink up

.PHONY: flink-down
flink-down:  ## stop the Flink cluster
	@test ! -x $(BIN)/python || $(BIN)/python -m deploy.flink down

.PHONY: prism
prism: .prism/prism  ## build Prism, Beam's portable local runner, for --runner=PrismRunner

.PHONY: reference
reference: $(VENV)/.test  ## regenerate the tables of flags and config fields in docs/
	$(BIN)/python -m tests.support.reference_tables

.PHONY: templates
templates: $(VENV)/.test  ## regenerate the metadata of the Flex Templates
	$(BIN)/python -m tests.support.flex_templates

# Keeps the pinned versions and adds what is missing; `make lock UPGRADE=--upgrade` moves all pins.
# The images install the files of deploy/requirements/, which have a hash for every archive: worker,
# and what the others need beyond it.
UV_COMPILE := $(BIN)/uv pip compile --quiet $(UPGRADE) --python-version 3.11 --no-annotate --no-header \
	--no-emit-index-url
UV_HASHES := $(UV_COMPILE) --python-platform x86_64-manylinux_2_28 --generate-hashes
WORKER := --constraint constraints.txt --extra gcp --extra s3 --extra tfds setup.py
BEYOND_WORKER = $$(sed -n 's/^\([^ =]*\)==.*/--no-emit-package \1/p' deploy/requirements/worker.txt)
.PHONY: lock
lock: $(VENV)/.test  ## pin all requirements: constraints.txt and, with hashes, deploy/requirements/
	$(BIN)/pip install --quiet uv
	$(UV_COMPILE) --universal --fork-strategy fewest --all-extras --output-file constraints.txt setup.py
	sed -n 's/^requires = \["\(.*\)"\]/\1/p' pyproject.toml | \
		$(UV_HASHES) --output-file deploy/requirements/build.txt -
	$(UV_HASHES) --output-file deploy/requirements/worker.txt $(WORKER)
	echo 'jax[cuda12]' | \
		$(UV_HASHES) --output-file deploy/requirements/cuda12.txt $(BEYOND_WORKER) $(WORKER) -
	$(UV_HASHES) --output-file deploy/requirements/train.txt $(BEYOND_WORKER) --extra train $(WORKER)

.PHONY: clean
clean: flink-down  ## remove the environment, the demo's output and caches
	rm -rf $(VENV) .flink .prism demo_output build dist site *.egg-info
	rm -rf .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The version is that of apache-beam in constraints.txt.
.prism/prism: constraints.txt
	@command -v go >/dev/null || { echo "Prism is built with Go, which is missing: https://go.dev/doc/install" >&2; exit 1; }
	@echo "building Prism: two or three minutes, once"
	GOBIN=$(CURDIR)/.prism go install "github.com/apache/beam/sdks/v2/go/cmd/prism@v$$(sed -n 's/^apache-beam==\([0-9.]*\).*/\1/p' constraints.txt)"
	@touch $@

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 was not found; give its path: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "Python's venv module is incomplete; on Debian and Ubuntu: apt install python3-venv" >&2; rm -rf $(VENV); exit 1; }

# The stamps let a second run start at once. Each environment includes the one before it.
$(VENV)/.demo: $(VENV)/bin/python setup.py constraints.txt
	@test -e $(VENV)/.test -a ! setup.py -nt $(VENV)/.test -a ! constraints.txt -nt $(VENV)/.test || \
		{ echo "installing into $(VENV): a minute or two, once"; $(PIP_INSTALL) --editable '.[train]'; }
	@touch $@

$(VENV)/.test: $(VENV)/bin/python setup.py constraints.txt
	@echo "installing into $(VENV): about two minutes, once"
	@$(PIP_INSTALL) --editable '.[train,gcp,hf,dev]'
	@touch $@ $(VENV)/.demo

$(VENV)/.drills: $(VENV)/.test
	@echo "installing the documentation and notebook tools into $(VENV): a minute, once"
	@$(PIP_INSTALL) --editable '.[train,gcp,hf,dev,docs,notebook]'
	@touch $@
