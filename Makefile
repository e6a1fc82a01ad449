# Everything runs from here; the first call builds the environment it needs.
PYTHON ?= python3
VENV := .venv/main
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test check docs fix clean

demo: $(STAMP)
	$(BIN)/vlm-lora demo --output_dir runs/demo

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadgroup

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/architecture

# The pages that tests make and check; one process, because they write the same files.
docs: $(STAMP)
	UPDATE_DOCS=1 $(BIN)/python -m pytest -q tests/golden tests/integration/test_families.py

fix: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv runs

# torch first and alone: another package asking for "torch" would fetch the newest CUDA build.
# torchvision without dependencies, because it pins the CUDA build of another torch.
$(STAMP): pyproject.toml constraints-main.txt requirements-test.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints-main.txt torch
	$(BIN)/pip install -q --disable-pip-version-check -c constraints-main.txt -r requirements-test.txt hatchling editables
	$(BIN)/pip install -q --disable-pip-version-check --no-deps -c constraints-main.txt torchvision timm
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation tests/support/torchvision_cpu
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $(STAMP)
