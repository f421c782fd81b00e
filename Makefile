PYTHON ?= python3
SEED ?= 1234
BIN := .venv/bin
READY := .venv/.ready

.PHONY: quickstart quickstart-ptuning test test-slow lint base

# Makes .venv, fine-tunes the embedded tiny model with LoRA, merges, and shows answers before and after.
quickstart: $(READY)
	@$(BIN)/python examples/quickstart/run.py --train_type lora --seed $(SEED)

# The same with P-Tuning v2.
quickstart-ptuning: $(READY)
	@$(BIN)/python examples/quickstart/run.py --train_type ptuning --seed $(SEED)

# Lint and all tests but the slow ones.
test: lint
	$(BIN)/python -m pytest

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Make the embedded base model and its sample again.
base: $(READY)
	$(BIN)/python -m examples.quickstart.sentences
	$(BIN)/python -m examples.quickstart.make_base

$(READY): requirements.txt setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@
