PYTHON ?= python3
SEED ?= 1234
BIN := .venv/bin
BROWSER := $(firstword $(foreach name,chromium chromium-browser google-chrome,$(shell command -v $(name))))
READY := .venv/.ready

.PHONY: quickstart quickstart-ptuning compare bench bench-quick gpu test test-slow test-oldest lint base ecosystem

# Makes .venv, fine-tunes the embedded tiny model with LoRA, merges, and shows answers before and after.
quickstart: $(READY)
	@$(BIN)/python examples/quickstart/run.py --train_type lora --seed $(SEED)

# The same with P-Tuning v2.
quickstart-ptuning: $(READY)
	@$(BIN)/python examples/quickstart/run.py --train_type ptuning --seed $(SEED)

# Fine-tunes the embedded tiny model in five ways with three seeds each, and puts their figures side by side.
compare: $(READY)
	@$(BIN)/glmft compare --tuners examples/quickstart/compare --num_seeds 3 --seed $(SEED) \
	  --test_path examples/quickstart/test_new_patterns.json --max_samples 100 --max_new_tokens 48 \
	  --per_device_eval_batch_size 64 --show_first_record False

# Training steps beside the Trainer, a plain loop and bare DeepSpeed: benchmarks/RESULTS.md. About half an hour.
bench: $(READY)
	@$(BIN)/python -m benchmarks.training $(BENCH)

# The same with few and short records, into benchmarks/quick.
bench-quick: $(READY)
	@$(BIN)/python -m benchmarks.training --steps 2 --longest 256 --output_dir benchmarks/quick $(BENCH)

# On a machine with a CUDA GPU, within ten minutes: the tests that need one, and steps at ChatGLM2-6B's real shape.
gpu: $(READY)
	@$(BIN)/python -m benchmarks.gpu $(GPU)

# Lint and all tests but the slow ones.
test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: $(READY) $(if $(BROWSER),.venv/.browser)
	$(BIN)/python -m pytest -m slow

# What drives the browser in the tests of the page: 50 MB, where there is a browser to drive.
.venv/.browser: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check playwright==1.65.2
	@touch $@

# All tests but the slow ones with the oldest transformers that setup.py allows; `make test` has the pinned one.
test-oldest: .venv-oldest/.ready
	.venv-oldest/bin/python -m pytest

# Other libraries on our models: trl, lm-eval, transformers' Trainer and pipelines, peft.
ecosystem: .venv-ecosystem/.ready
	.venv-ecosystem/bin/python -m pytest -m "slow or not slow" tests/ecosystem tests/tuners/test_peft_prefix.py

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

.venv-oldest/.ready: requirements.txt setup.py
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check \
	  "transformers==$$(sed -n 's/.*"transformers>=\([0-9.]*\),.*/\1/p' setup.py)"
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

.venv-ecosystem/.ready: requirements.txt setup.py
	$(PYTHON) -m venv .venv-ecosystem
	.venv-ecosystem/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	.venv-ecosystem/bin/python -m pip install --quiet --disable-pip-version-check -e ".[ecosystem]" -c requirements.txt
	@touch $@
