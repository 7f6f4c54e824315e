# make test   lint, types, tests            make demo   every system on drawn images, from nothing
# make bench  the benchmarks                make setup  only the environment, in .venv
VENV ?= .venv
BIN := $(VENV)/bin
PYTHON ?= python3
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: setup test lint check-types check-layers unit demo bench clean

setup: $(VENV)/.complete

$(VENV)/.complete: pyproject.toml
	@echo "installing rcnnpipe and its tools into $(VENV) (PyTorch is several gigabytes)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $@

test: lint check-types check-layers unit

lint: setup
	ruff check .
	ruff format --check .

check-types: setup
	mypy

check-layers: setup
	lint-imports

unit: setup
	python -m pytest -n logical --maxprocesses 8 --dist loadfile

demo: setup
	@echo "drawing the demo set and running every system on it, with and without their parts"
	dvc repro
	@cat results/comparison.md
	@echo "detections drawn on images: results/SYSTEM/shown/"

bench: setup
	@for file in tests/benchmarks/bench_*.py; do \
		echo "== $$file"; python -m $$(echo $${file%.py} | tr / .) || exit 1; done

clean:
	rm -rf artifacts results data/shapes data/shapes-pretrain .pytest_cache .mypy_cache .ruff_cache
