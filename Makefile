# Everything runs from one virtual environment, made on first use: `make demo` and `make test` need
# only Python 3.10+ and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.PHONY: demo test test-slow check bench bench-report docs clean

$(VENV)/.ready: setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[train,report,test]'
	touch $@

demo: $(VENV)/.ready  ## one pretrained ViT in six sizes, beside templates and random weights
	$(BIN)/weightinit demo

# Several workers share the cores: more threads each only slow them down.
test test-slow: export OMP_NUM_THREADS ?= 1

test: $(VENV)/.ready check  ## what must hold at every change, in a few minutes on two cores
	$(PYTEST)

test-slow: $(VENV)/.ready  ## the rest: notebooks, trainings, processes, every model of timm
	$(PYTEST) -m slow

check: $(VENV)/.ready  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(VENV)/.ready  ## the measurements behind docs/performance.md, and the demo's
	$(BIN)/python benchmarks/kernels.py
	$(BIN)/python benchmarks/initialise.py
	$(BIN)/python benchmarks/transform.py
	$(BIN)/python benchmarks/hypernet.py
	$(BIN)/python benchmarks/demo.py
	$(BIN)/python benchmarks/coverage.py

bench-report: $(VENV)/.ready  ## the tables and plots of docs/, from the result files
	$(BIN)/python benchmarks/report.py

docs: $(VENV)/.ready  ## the documentation as a site, in site/
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:
	rm -rf $(VENV) build dist site *.egg-info
