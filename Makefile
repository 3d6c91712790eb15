# `make demo` and `make test` need Python 3.11 and make; the environment .venv is made when missing or stale.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo ui test test-unit test-chaos lint layers types format lock benchmarks

# lavlab-shell, a published teacher of the tests, comes alone: what it asks for would write over onnxruntime.
setup: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps lavlab-shell==0.9.1
	touch $@

demo: setup  ## SLIDE=path takes your own slide, MPP=0.25 says what it does not record
	@$(BIN)/python -m histill.local.demo $(if $(SLIDE),--slide "$(SLIDE)") $(if $(MPP),--slide-mpp $(MPP))

ui: setup
	@$(BIN)/python -m histill.local.ui

test: setup  ## all that proves the product, on a real Ray, S3 and MLflow server
	$(BIN)/python -m pytest -q -m "not chaos" --durations=10

test-unit: setup
	$(BIN)/python -m pytest -q tests/unit

test-chaos: setup  ## jobs killed at their writes, and hosts that are lost (these need root and iproute2)
	$(BIN)/python -m pytest -q tests/chaos --durations=10

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

layers: setup
	$(BIN)/lint-imports --no-cache --no-logo

types: setup
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmarks: setup  ## the loaders that histill is measured beside; MosaicML Streaming pins an older numpy, and needs none
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev,benchmarks]'
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps mosaicml-streaming==0.13.0

lock: setup  ## write down the versions that .venv holds
	$(BIN)/python -m pip freeze --exclude-editable | grep -v -e '^#' -e ' @ ' -e '^mosaicml-streaming' -e '^lavlab-shell' > constraints.txt
	touch $(READY)
