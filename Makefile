# Everything runs from here; the first call builds the environment it needs.
PYTHON ?= python3
VENV := .venv/main
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# The Gaudi stack cannot share an environment with transformers 5: here it runs over a simulated device.
GAUDI := .venv/gaudi
GAUDI_STAMP := $(GAUDI)/.installed
# The same device for the main stack: in a folder that only the processes of some tests have on their path.
HPU := .venv/hpu
HPU_STAMP := $(HPU)/.installed
SIMULATOR := $(shell find tests/support/hpu_simulator -type f -not -path '*/__pycache__/*')

.PHONY: demo test tools test-main test-gaudi check check-quantize check-serve canary lock audit families check-registry docs bench bench-gpu fix clean

demo: $(STAMP)
	$(BIN)/vlm-lora demo --output_dir runs/demo

test: tools test-main test-gaudi

# In the first second: says what is not there, or installs it where it may.
tools:
	@tests/tools.sh

test-main: $(STAMP) $(HPU_STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadgroup

test-gaudi: $(STAMP) $(GAUDI_STAMP) $(HPU_STAMP)
	PATH="$(CURDIR)/$(GAUDI)/bin:$$PATH" $(GAUDI)/bin/python -m pytest -n 2 --dist loadgroup

# The newest releases of what the project stands on, in an environment of its own: for people, not for CI.
CANARY := .venv/canary
canary: tools
	rm -rf $(CANARY)
	$(MAKE) VENV=$(CANARY) $(CANARY)/.installed
	$(CANARY)/bin/pip install $(PIP_FLAGS) -U --upgrade-strategy only-if-needed transformers peft accelerate trl
	$(CANARY)/bin/pip list | grep -E "^(torch|transformers|peft|accelerate|trl) "
	$(CANARY)/bin/python -m pytest -n 2 --dist loadgroup tests/contract tests/integration

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/architecture

# A model trained on the demo's task, quantized by llm-compressor on this CPU and scored before and after, in the
# environment that the verb makes: for people with internet, not for CI. Minutes, and some gigabytes.
QUANTIZE := .venv/quantize
check-quantize: $(STAMP)
	$(BIN)/vlm-lora quantize --make_environment --environment $(QUANTIZE)
	$(QUANTIZE)/bin/pip install $(PIP_FLAGS) hatchling editables setuptools wheel
	$(QUANTIZE)/bin/pip install $(PIP_FLAGS) --no-deps -c constraints-main.txt torchvision
	$(QUANTIZE)/bin/pip install $(PIP_FLAGS) $(LOCAL) tests/support/torchvision_cpu
	$(QUANTIZE)/bin/pip install $(PIP_FLAGS) $(LOCAL) -e .
	$(BIN)/python tests/check_quantize.py $(or $(FOLDER),$(shell mktemp -d)/check) --environment $(QUANTIZE)

# The versions of constraints-*.txt with the hashes of their files; after a change of either.
lock: $(STAMP) $(GAUDI_STAMP)
	$(BIN)/python tests/lock.py constraints-main.txt requirements-lock-main.txt
	$(GAUDI)/bin/python tests/lock.py constraints-gaudi.txt requirements-lock-gaudi.txt

# Known holes in what is locked, asked of the package registry: for people with internet, not for CI. Both stacks are
# audited, whatever the first one shows; a package that cannot be audited fails it, too.
AUDIT := .venv/audit
LOCKS := requirements-lock-main.txt requirements-lock-gaudi.txt
audit:
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/pip install $(PIP_FLAGS) pip-audit
	failed=; for lock in $(LOCKS); do \
	  $(AUDIT)/bin/pip-audit --strict --disable-pip --require-hashes -r $$lock || failed="$$failed $$lock"; done; \
	  test -z "$$failed" || { echo "not clean, or not audited:$$failed" >&2; exit 1; }

# The pages that tests make and check; one process, because they write the same files.
docs: $(STAMP)
	UPDATE_DOCS=1 $(BIN)/python -m pytest -q tests/golden tests/integration/test_families.py

# Every type that transformers maps from image and text to text, each tried once; FAMILIES="TYPE ... --again" tries some
# anew, and --deep tries more of them. Results go to docs/families.json as they come; `make docs` writes the page.
families: $(STAMP)
	HF_HUB_OFFLINE=1 PYTHONPATH=tests $(BIN)/python -m support.families $(FAMILIES)

# MLflow itself, which is not in the suite's stacks: two runs registered, found by name, compared in their store.
# STORE=http://127.0.0.1:5000 for a server that is there, and empty, in place of a file.
MLFLOW := .venv/mlflow
check-registry: $(STAMP)
	test -x $(MLFLOW)/bin/python || $(BIN)/python -m venv $(MLFLOW)
	$(MLFLOW)/bin/pip install $(PIP_FLAGS) alembic==1.20.1 mlflow-skinny==3.17.2 sqlalchemy==2.1.9
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > \
	  $$($(MLFLOW)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/main.pth
	rm -rf runs/check-registry
	HF_HUB_OFFLINE=1 PYTHONPATH=.:backends:tests $(MLFLOW)/bin/python tests/check_registry.py runs/check-registry $(STORE)

# Beside TRL and a plain script on this CPU: about a quarter of an hour. BENCH="--stages peaks" runs a part.
bench: $(STAMP)
	$(BIN)/python -m benchmarks $(BENCH)

# On one CUDA GPU, at most eight minutes, in the environment that BENCH_PYTHON names: requirements-cuda.txt with trl.
# GPU="--dry_run" says what it would do, GPU="--wheels DIR" takes missing peers from there.
BENCH_PYTHON ?= $(BIN)/python
bench-gpu: $(if $(filter $(BIN)/python,$(BENCH_PYTHON)),$(STAMP))
	$(BENCH_PYTHON) -m benchmarks.gpu $(GPU)

# A merged model behind `transformers serve`, asked by an OpenAI client: a minute or two, after `make demo`. What the
# server needs lies in a folder of its own, so that no test comes to stand on it.
SERVE := .venv/serve
ADAPTER ?= runs/demo/adapter
DATA ?= runs/demo/charts
check-serve: $(STAMP)
	$(BIN)/pip install $(PIP_FLAGS) --upgrade --target $(SERVE) -c constraints-main.txt fastapi uvicorn openai
	PYTHONPATH=$(SERVE) $(BIN)/python tests/check_serve.py $(ADAPTER) $(DATA)

fix: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv runs

# torch first and alone: another package asking for "torch" would fetch the newest CUDA build.
# torchvision without dependencies, because it pins the CUDA build of another torch; trl, because it pins another
# transformers than the Gaudi stack has (only its chat templates are used).
PIP_FLAGS := -q --disable-pip-version-check
LOCAL := --no-deps --no-build-isolation

$(STAMP): pyproject.toml constraints-main.txt requirements-test.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(PIP_FLAGS) -c constraints-main.txt torch
	$(BIN)/pip install $(PIP_FLAGS) -c constraints-main.txt -r requirements-test.txt \
	  hatchling editables setuptools wheel ninja
	$(BIN)/pip install $(PIP_FLAGS) --no-deps -c constraints-main.txt torchvision timm
	DS_BUILD_OPS=0 $(BIN)/pip install $(PIP_FLAGS) --no-build-isolation -c constraints-main.txt deepspeed
	$(BIN)/pip install $(PIP_FLAGS) $(LOCAL) tests/support/torchvision_cpu
	$(BIN)/pip install $(PIP_FLAGS) $(LOCAL) -e .
	touch $(STAMP)

$(GAUDI_STAMP): pyproject.toml constraints-gaudi.txt requirements-test-gaudi.txt $(SIMULATOR)
	$(PYTHON) -m venv $(GAUDI)
	$(GAUDI)/bin/pip install $(PIP_FLAGS) -c constraints-gaudi.txt torch
	$(GAUDI)/bin/pip install $(PIP_FLAGS) -c constraints-gaudi.txt -r requirements-test-gaudi.txt \
	  hatchling editables setuptools wheel ninja
	$(GAUDI)/bin/pip install $(PIP_FLAGS) --no-deps -c constraints-gaudi.txt torchvision timm trl
	DS_BUILD_OPS=0 $(GAUDI)/bin/pip install $(PIP_FLAGS) --no-build-isolation -c constraints-gaudi.txt deepspeed
	$(GAUDI)/bin/pip install $(PIP_FLAGS) $(LOCAL) tests/support/torchvision_cpu
	$(GAUDI)/bin/pip install $(PIP_FLAGS) $(LOCAL) --force-reinstall tests/support/hpu_simulator
	$(GAUDI)/bin/pip install $(PIP_FLAGS) $(LOCAL) -e .
	$(GAUDI)/bin/python -c "import torch; torch.ones(1, device='hpu')"
	touch $(GAUDI_STAMP)

$(HPU_STAMP): $(STAMP) $(SIMULATOR)
	rm -rf $(HPU)
	$(BIN)/pip install $(PIP_FLAGS) $(LOCAL) --target $(HPU) tests/support/hpu_simulator
	PYTHONPATH=$(HPU) PT_HPU_LAZY_MODE=0 $(BIN)/python -c "import torch; torch.ones(1, device='hpu')"
	touch $(HPU_STAMP)
