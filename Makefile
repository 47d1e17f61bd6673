# Everything runs from one virtual environment, made on first use: `make demo` and `make test` need
# only Python 3.10+ and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2
export OMP_NUM_THREADS ?= 1

.PHONY: demo test check bench bench-report clean

$(VENV)/.ready: setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[train,report,test]'
	touch $@

demo: $(VENV)/.ready  ## initialise five ViTs from the shipped bundle, and compare with random
	OMP_NUM_THREADS= $(BIN)/weightinit demo

test: $(VENV)/.ready check  ## everything that must hold, in about ten minutes on two cores
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

check: $(VENV)/.ready  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(VENV)/.ready  ## the measurements behind the README's numbers
	OMP_NUM_THREADS= $(BIN)/python benchmarks/kernels.py
	OMP_NUM_THREADS= $(BIN)/python benchmarks/initialise.py
	OMP_NUM_THREADS= $(BIN)/python benchmarks/transform.py
	OMP_NUM_THREADS= $(BIN)/python benchmarks/hypernet.py
	OMP_NUM_THREADS= $(BIN)/python benchmarks/demo.py
	$(BIN)/python benchmarks/coverage.py

bench-report: $(VENV)/.ready  ## the README's tables, from the result files
	$(BIN)/python benchmarks/report.py

clean:
	rm -rf $(VENV) build dist *.egg-info
