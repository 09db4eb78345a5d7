# The two commands are `make ablation` and `make test`; each builds .venv first if it is missing or out of date.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: ablation smoke study settings test test-slow test-oldest test-browser drills fuzz gpu figures notebook docs lint constraints clean
ablation: .venv/.installed
	$(BIN)/tiny-onn ablate experiments/ablation.yaml --resume

smoke: .venv/.installed
	$(BIN)/tiny-onn ablate experiments/smoke.yaml --resume

study: .venv/.installed
	set -e; for each in arms costs depth metrics batch cause length; do $(BIN)/tiny-onn ablate experiments/study/$$each.yaml --resume; done

# Writes docs/settings.md anew from the settings themselves.
settings: .venv/.installed
	$(BIN)/tiny-onn settings --markdown > docs/settings.md

test: lint
	$(BIN)/pytest -m "not slow"

test-slow: .venv/.installed
	$(BIN)/pytest -m slow

# With the oldest versions that pyproject.toml allows; downloads some gigabytes.
test-oldest:
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet uv
	.venv-oldest/bin/uv pip compile --quiet --resolution lowest-direct --extra dev --extra notebook --output-file .venv-oldest/oldest.txt pyproject.toml
	.venv-oldest/bin/pip install --quiet --requirement .venv-oldest/oldest.txt --editable .
	.venv-oldest/bin/pytest -m "not slow and not pinned"

# Needs Chromium, as of apt-get install chromium; CHROMIUM=path names another one.
test-browser: .venv/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,notebook,browser]'
	$(BIN)/pytest -m browser

drills: .venv/.installed
	$(BIN)/python -m tests.drills

# On a machine with a GPU, into build/gpu.md; needs torch and jaxtyping, and nothing else of ours. Elsewhere: make gpu DEVICE=cpu
DEVICE ?= cuda
gpu:
	@$(PYTHON) -c 'import torch, jaxtyping' || { echo 'make gpu needs a Python that has torch >= 2.9 and jaxtyping. Name it with: make gpu PYTHON=.venv/bin/python'; exit 1; }
	mkdir -p build
	$(PYTHON) -m tests.gpu --device $(DEVICE) --output build/gpu.md

fuzz: .venv/.installed
	$(BIN)/python -m tests.fuzz --minutes 10

# Writes the numbers and figures of README, experiments/RESULTS.md and docs/ anew from experiments/results.
figures: .venv/.installed
	$(BIN)/python -m experiments.figures

# Makes experiments/first_look.ipynb from first_look.py, and runs it.
notebook: .venv/.installed
	$(BIN)/python -m experiments.notebook

# The documents as a site, in build/site.
docs: .venv/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,notebook,docs]'
	mkdir -p build/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "Built: build/site/index.html"

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.version_info >= (3, 11) or sys.exit(f"Python >= 3.11 is needed; {sys.executable} is {v}. Name another with: make PYTHON=python3.12")'
	@echo "Building .venv with the packages of constraints.txt; once, a few minutes"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,notebook,bench,examples]'
	touch $@

# Writes constraints.txt anew from pyproject.toml by `uv pip compile`, and keeps the versions in it that are still
# allowed; for the newest ones: make constraints UPGRADE=--upgrade. Each line says what needs it, which `make test`
# compares with pyproject.toml. Left out are the CUDA packages of torch, which pins them itself.
constraints:
	$(PYTHON) -m venv build/uv
	build/uv/bin/pip install --quiet uv
	build/uv/bin/uv pip compile --quiet --all-extras --python-version 3.11 --annotation-style line $(UPGRADE) \
		--custom-compile-command 'make constraints' --output-file constraints.txt pyproject.toml
	sed -i -E '/^(cuda|nvidia|triton)/d' constraints.txt

clean:
	rm -rf .venv build *.egg-info
