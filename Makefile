# Needs make and Python 3.11; the environment .venv is made when it is missing or stale.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo ui promtool test test-unit test-chaos lint layers types format lock benchmarks docs docs-serve tutorial

help:  ## print this list
	@grep -hE '^[a-z-]+:.*  ## ' $(MAKEFILE_LIST) | awk -F ':.*  ## ' '{printf "  make %-11s %s\n", $$1, $$2}'

# lavlab-shell, a published teacher for the tests, is installed without its dependencies: they would replace onnxruntime.
setup: $(READY)  ## install histill and its development tools into .venv

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps lavlab-shell==0.9.1
	touch $@

demo: setup  ## run the whole pipeline on a sample slide (SLIDE=path MPP=0.25 for your own), with S3, MLflow and Ray
	@$(BIN)/python -m histill demo $(if $(SLIDE),--slide "$(SLIDE)") $(if $(MPP),--slide-mpp $(MPP))

ui: setup  ## show the last demo's runs in MLflow
	@$(BIN)/python -m histill ui

# Taken out of the package and not installed with it, which would start a server.
promtool:  ## take promtool, by which the tests check the alert rules, from Debian's package prometheus
	test -x .tools/promtool || { mkdir -p .tools && cd .tools && apt-get download -q prometheus \
		&& dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x --to-stdout ./usr/bin/promtool > promtool.part \
		&& chmod +x promtool.part && mv promtool.part promtool && rm prometheus_*.deb; }

# A process that crashes ends the run: xdist would start another and wait for tests that it does not get.
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist loadgroup --max-worker-restart 0 --durations=10

test: setup  ## run every test but those of chaos, on two processes and real Ray, S3 and MLflow servers
	$(PYTEST) -m "not chaos"

test-unit: setup  ## run the unit tests alone
	$(PYTEST) tests/unit

test-chaos: setup  ## kill jobs at their writes and take hosts away (needs root and iproute2)
	$(BIN)/python -m pytest -q tests/chaos --durations=10

lint: setup  ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

layers: setup  ## check that no module imports from a layer above its own
	$(BIN)/lint-imports --no-cache --no-logo

types: setup  ## check types
	$(BIN)/mypy

format: setup  ## fix style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The notice is of a later MkDocs, which nothing here uses.
docs: setup  ## build the documentation into site/; any warning fails
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

docs-serve: setup  ## show the documentation on port 8000 while you write
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve

tutorial: setup  ## run docs/tutorial.ipynb, and keep what it prints and draws
	$(BIN)/python -m testbed.notebook docs/tutorial.ipynb docs/img

# MosaicML Streaming pins an older numpy than it needs.
benchmarks: setup  ## install the data loaders that the benchmarks compare with
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev,benchmarks]'
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps mosaicml-streaming==0.13.0

lock: setup  ## pin the versions installed in .venv
	$(BIN)/python -m pip freeze --exclude-editable | grep -v -e '^#' -e ' @ ' -e '^mosaicml-streaming' -e '^lavlab-shell' > constraints.txt
	touch $(READY)
