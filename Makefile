# `make test` in a fresh clone is enough: each target sets up .venv first. Needs Python 3.10 or newer; no root.
# Without an NVIDIA card, PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu makes torch a small download.

PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
COMFYUI_PATH ?=
PARALLEL ?= -n logical --maxprocesses 4
# Published LoRA files for the demo, where a folder of them lies beside the repository.
REAL_FILES ?= $(wildcard ../shared/data/real_files)

BIN := .venv/bin
INSTALLED := .venv/.installed
REQUIREMENTS := pyproject.toml constraints.txt tests/comfy/requirements.txt tests/web/requirements.txt

.PHONY: demo test test-comfy test-frontends check locales help-pictures fuzz bench bench-web

demo: $(INSTALLED)
	$(BIN)/lora-workbench demo $(REAL_FILES:%=--real-files %)

# pytest as a command, not `python -m pytest`: that would put this folder on sys.path, and our nodes/ before ComfyUI's nodes.py.
# ComfyUI runs in its own process: diffusers cannot be imported beside the torchvision stub.
# The first part is single-threaded work and runs on several cores (PARALLEL= for one); the other two share a ComfyUI each.
# tests/web starts a ComfyUI server and a browser; without Chromium it is skipped.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest $(PARALLEL) -m "not slow" --ignore=tests/comfy --ignore=tests/web tests
	COMFYUI_PATH="$(COMFYUI_PATH)" $(BIN)/pytest -m "not slow" tests/web
	COMFYUI_PATH="$(COMFYUI_PATH)" $(BIN)/pytest -m "not slow" tests/comfy

# make test-comfy COMFYUI_PATH=~/ComfyUI runs the same tests in that ComfyUI.
test-comfy: $(INSTALLED)
	COMFYUI_PATH="$(COMFYUI_PATH)" $(BIN)/pytest tests/comfy

# The canvas in the oldest frontend we serve and in the newest one there is.
test-frontends: $(INSTALLED)
	set -e; for version in ==1.27.10 ""; do \
		$(BIN)/python -m pip install -qq --upgrade --no-deps --target ".cache/frontend$$version" "comfyui-frontend-package$$version"; \
		PYTHONPATH=".cache/frontend$$version" COMFYUI_PATH="$(COMFYUI_PATH)" $(BIN)/pytest tests/web \
			--ignore=tests/web/test_modules.py --ignore=tests/web/test_graph_to_prompt.py; \
	done

check: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# What the nodes say, for the canvas; the other files of locales/ are written by hand.
locales: $(INSTALLED)
	$(BIN)/python tests/node_texts.py

# The pictures of the help pages, drawn on the real canvas. The checkpoint is the one that `make test-comfy` keeps.
help-pictures: $(INSTALLED)
	COMFYUI_PATH="$(COMFYUI_PATH)" $(BIN)/pytest tests/web/help_pictures.py

fuzz: $(INSTALLED)
	LORA_WORKBENCH_FUZZ=100000 $(BIN)/pytest tests/core/test_header_fuzz.py

bench: $(INSTALLED)
	set -e; for benchmark in $(filter-out benchmarks/web.py,$(wildcard benchmarks/*.py)); do echo "== $$benchmark"; $(BIN)/python "$$benchmark"; done

# The canvas in a browser: 200 rows, 5,000 files, start-up.
bench-web: $(INSTALLED)
	COMFYUI_PATH="$(COMFYUI_PATH)" $(BIN)/python benchmarks/web.py

$(INSTALLED): $(REQUIREMENTS) | $(BIN)/python
	$(BIN)/python -m pip install -qq --disable-pip-version-check $(CONSTRAINTS:%=-c %) \
		-e '.[dev]' -r tests/comfy/requirements.txt -r tests/web/requirements.txt
	touch $@

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed. Fix: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
