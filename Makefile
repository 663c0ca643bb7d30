# Two commands on a fresh machine: `make demo` and `make test`. Both create what they need in .venv.
# Needs Python 3.11 or newer, make and a C compiler; nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
KERNEL := $(addprefix transforms/tessera/transforms/,_kernel.c _passing.h)
INPUTS := pyproject.toml constraints.txt hatch_build.py $(KERNEL)
ROOMS := proto client keystore transforms server protect cli

JOBS ?= 2
TEST_ARGS ?= -n $(JOBS) --dist loadgroup

.PHONY: help demo test lint check proto proto-check format bench clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/.base: $(INPUTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Tessera needs Python 3.11 or newer; try: make PYTHON=python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing pinned dependencies into $(VENV) (the first time takes a minute or two: PyTorch is large)"
	$(PIP) install -q 'pip==26.3'
	$(PIP) install -q -c constraints.txt -e '.[demo]'
	@$(BIN)/python -c 'from tessera.transforms import IMPLEMENTATION; print("transforms:", IMPLEMENTATION)'
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(PIP) install -q -c constraints.txt --group dev --group gen
	@touch $@

demo: $(VENV)/.base ## Protect, seal, license, serve and meter one real model, end to end
	$(BIN)/tessera demo $(DEMO_ARGS)

test: $(VENV)/.dev ## Run the whole test suite in JOBS=2 processes; TEST_ARGS='-k name' runs a part of it
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TEST_ARGS)

lint: $(VENV)/.dev proto-check ## ruff, mypy --strict, import contracts, buf lint, generated code up to date
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	cd proto && ../$(BIN)/buf lint

check: lint test ## What CI runs

proto: $(VENV)/.dev ## Generate the code of every .proto, beside its source
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python proto/generate.py

proto-check: proto
	@git diff --exit-code --stat -- proto || { echo "generated code differs from the .proto files: commit the output of 'make proto'" >&2; exit 1; }

format: $(VENV)/.dev ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.dev ## Measure the appliance, loading, transforms and tiers; results under benchmarks/results/
	$(BIN)/python -m benchmarks.appliance
	$(BIN)/python -m benchmarks.package_load
	$(BIN)/python -m benchmarks.transforms
	$(BIN)/python -m benchmarks.tiers

clean: ## Remove the environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
