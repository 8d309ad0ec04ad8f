# Everything that `make` needs and makes stays below this directory. See `make help`.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.NOTPARALLEL:
.DEFAULT_GOAL := help

# Arguments of `depth-node demo`, for example DEMO_ARGS='--seconds 20'.
DEMO_ARGS ?=
# Arguments of pytest, for example PYTEST_ARGS='tests/unit -x'.
PYTEST_ARGS ?=
# Arguments of pip where PyTorch is installed (make test only). PyPI's build of PyTorch for Linux
# brings some GB of CUDA; with an index of CPU builds it is 200 MB:
#   make test TORCH_PIP_ARGS='--extra-index-url <the CPU index that pytorch.org names>'
TORCH_PIP_ARGS ?=
# The chain in small: minutes of rendering and of training, and what is rendered.
CHAIN_RENDER_MINUTES ?= 6
CHAIN_TRAIN_MINUTES ?= 8
CHAIN_WORKERS ?= 2
CHAIN_SYNTHESIZE ?= --renderer raycast --seed 7 --scenes 2000
# Its folder; a model or results.json to compare with; environments and furniture that are there.
CHAIN_FOLDER ?= chain
CHAIN_BASELINE ?= small
CHAIN_PYTHON ?=
CHAIN_BPY_PYTHON ?=
CHAIN_FURNITURE ?=
# A Python 3.11, where `python3.11` is not on PATH.
PYTHON ?=
export TORCH_PIP_ARGS PYTHON PYTEST_ARGS

.PHONY: help
help:  ## List the targets.
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

.PHONY: setup
setup:  ## Set up .venv with ROS 2 and the built package; `source scripts/env.sh` to use it.
	@scripts/setup.sh run

.PHONY: demo
demo: setup  ## Set up, then play a clip through the real node; results in demo_output/.
	@. scripts/env.sh; depth-node demo $(DEMO_ARGS)

.PHONY: setup-test
setup-test:
	@scripts/setup.sh test

.PHONY: test
# The tests over DDS have the machine to themselves; the others run two files at a time.
test: setup-test lint  ## Set up with PyTorch, then run lint, type check and all tests.
	@. scripts/env.sh; if [ -n "$$PYTEST_ARGS" ]; then \
	  python -m pytest --timeout 300 $(PYTEST_ARGS); \
	else \
	  status=0; \
	  python -m pytest --timeout 300 tests/ros || status=$$?; \
	  python -m pytest --timeout 300 --numprocesses 2 --dist loadfile --no-loadscope-reorder \
	    --ignore tests/ros || status=$$?; \
	  exit $$status; \
	fi

.PHONY: chain
chain:  ## Render, train, export, quantize, evaluate and infer in small (some 20 minutes); see docs/training.md.
	@$(or $(PYTHON),python3) scripts/chain.py --folder '$(CHAIN_FOLDER)' \
	  --render-minutes '$(CHAIN_RENDER_MINUTES)' --train-minutes '$(CHAIN_TRAIN_MINUTES)' \
	  --workers '$(CHAIN_WORKERS)' --synthesize='$(CHAIN_SYNTHESIZE)' \
	  --baseline '$(CHAIN_BASELINE)' --python '$(CHAIN_PYTHON)' \
	  --bpy-python '$(CHAIN_BPY_PYTHON)' --furniture '$(CHAIN_FURNITURE)'

.PHONY: sweep
sweep: setup-test  ## Long checks: every preset from train to card, every network to TensorRT-RTX (half an hour).
	@. scripts/env.sh; python -m pytest --timeout 900 -m sweep $(PYTEST_ARGS) tests/unit

.PHONY: soak
soak: setup-test  ## Feed the node 30 images a second for a minute, and account for every one.
	@. scripts/env.sh; DEPTH_NODE_SOAK=1 python -m pytest -s -k thirty tests/ros/test_topics.py

.PHONY: lint
lint: setup-test  ## Run ruff, and mypy on the core.
	@. scripts/env.sh; python -m ruff check .
	@. scripts/env.sh; python -m mypy

.PHONY: clean
clean:  ## Remove all that make made: environments, builds, demo output, caches.
	rm -rf .venv .venv-* .colcon .colcon-* build install log dist *.egg-info demo_output chain
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
