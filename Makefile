# Set-up, checks and the demo. `make demo` and `make test` do everything on a fresh machine (Debian, Python >= 3.11).
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# One thread each: the matrices are small, and two processes of two threads on two cores are far slower than of one.
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1

.PHONY: help setup demo mazes notebooks wheel test fuzz kill lint format slow clean
.DEFAULT_GOAL := help

help:  ## List the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

setup: $(READY)  ## Make .venv with everything that the demo and the tests need

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"flexgen needs Python 3.11 or newer, got {sys.version}"'
	$(PYTHON) -c 'import ensurepip' || (apt-get update && apt-get install -y python3-venv)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(READY)

demo: $(READY)  ## Learn a real table and sample its joint by Gibbs, generate a video; leave both in out/demo
	$(BIN)/flexgen demo overwrite=true
	$(BIN)/flexgen video model=mazes32 observed=mazes32/held_out.mp4 num_observed=12 \
		num_frames=240 output=out/demo overwrite=true

# What miniworld needs to render without a screen.
GL := xvfb libgl1 libglu1-mesa libgl1-mesa-dri

mazes: $(READY)  ## Render videos to train and test video models on into mazes/; goes on where it was stopped
	$(BIN)/python -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("miniworld") is None)' || \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[render]"
	dpkg -s $(GL) > /dev/null 2>&1 || (apt-get update && apt-get install -y $(GL))
	$(BIN)/flexgen render output=mazes/train num_clips=240
	$(BIN)/flexgen render output=mazes/held_out num_clips=24 seed=1

notebooks: $(READY)  ## Run all notebooks and keep their results; the one on AntiBERTy where its package is installed
	$(BIN)/python -c 'import ipykernel, jupytext, nbclient' || \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[notebooks]"
	$(BIN)/python notebooks/build.py

wheel: $(READY)  ## Build the source distribution and the wheel into dist/
	$(BIN)/python -m build

test: lint  ## Lint, types and the default test tier
	$(BIN)/python -m pytest -n 2 --dist loadfile

slow: $(READY)  ## The long tests as well
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not gpu"

kill: $(READY)  ## Kill everything that is saved or resumed a hundred times each, and see what is found
	$(BIN)/python -m tests.kill.kills --kills 100

fuzz: $(READY)  ## 20 000 calls with wrong arguments over the public face; prints a table and what failed
	$(BIN)/python -m tests.fuzz.fuzzer --calls 20000

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## Remove what the targets made
	rm -rf .venv out build dist .pytest_cache .mypy_cache .ruff_cache
