# `make` lists the targets. Everything runs in .venv, which each target creates or updates if needed.

PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
ARGS ?=
# Each process of the tests needs about 2 GB of memory.
TEST_PROCESSES ?= auto

# Waiting threads spin briefly and then sleep. The default, long spinning, makes training several times slower on a busy
# machine; sleeping immediately makes it 1.4 times slower on an idle one.
export GOMP_SPINCOUNT ?= 20000

.DEFAULT_GOAL := help
.PHONY: help setup test test-all lint format demo bench clean clean-env

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  PYTHON=/path/to/python3   the Python (>= 3.10) that .venv is made from; default: python3. If it has a"
	@echo "                            Detectron2 already, its packages stay visible in .venv and that Detectron2 is kept,"
	@echo "                            as is one that you installed into .venv yourself."
	@echo "  VENV=DIR                  another folder for the environment"
	@echo "  TEST_PROCESSES=N          processes of the tests; default: one per core"
	@echo "  ARGS=...                  passed on by test (pytest) and demo (demo/shapes_demo.py), e.g. ARGS=--help"

setup: ## create or update .venv from PyPI (immediate if nothing changed)
	@$(PYTHON) tools/setup_env.py --venv "$(VENV)" $(if $(filter file,$(origin PYTHON)),,--chosen-python)

PYTEST := $(RUN) -m pytest --numprocesses $(TEST_PROCESSES) --maxprocesses 16 --dist loadfile --no-loadscope-reorder

test: setup ## run the tests, in one process per core
	$(PYTEST) $(ARGS)

test-all: setup ## run the tests, also those that take minutes
	$(PYTEST) -m "" $(ARGS)

lint: setup ## ruff and the type checker
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m ty check --python $(VENV)

format: setup ## let ruff fix style and layout
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

# A warning that Detectron2 causes at import in every process; users can't avoid it.
demo: export PYTHONWARNINGS = ignore::UserWarning:detectron2.model_zoo.model_zoo
demo: setup ## train and evaluate a small model on generated images, then run the full-size one on a photograph
	$(RUN) demo/shapes_demo.py $(ARGS)

# Uses all cores unless OMP_NUM_THREADS is set. On a busy machine, times vary more than ratios.
bench: setup ## compare speed and memory with other implementations (three quarters of an hour); tables in benchmarks/results
	$(RUN) benchmarks/attention.py --quick
	$(RUN) benchmarks/deformable_attention.py
	$(RUN) benchmarks/model.py
	$(RUN) benchmarks/model.py --train --repeats 1
	$(RUN) benchmarks/evaluate.py
	$(RUN) benchmarks/training_memory.py
	$(RUN) benchmarks/inference_memory.py
	$(RUN) benchmarks/model_memory.py
	$(RUN) benchmarks/compile.py
	$(RUN) benchmarks/peers.py
	$(RUN) benchmarks/triton_kernels.py
	$(RUN) benchmarks/many_images.py --images 20000
	$(RUN) benchmarks/scaling.py --results benchmarks/results/scaling

clean: ## remove what the demo wrote (output/shapes, datasets/shapes) and caches; other runs in output/ stay
	rm -rf output/shapes datasets/shapes datasets/shapes.* build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +

clean-env: ## remove .venv
	@if [ -e "$(VENV)" ] && [ ! -e "$(VENV)/setup-base" ]; then echo "$(VENV) was not created by make setup: left unchanged" >&2; exit 1; fi
	rm -rf "$(VENV)"
