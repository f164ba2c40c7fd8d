# Needs Python 3.11 or later (with venv) and make. The first target makes .venv, once:
#   make quickstart PYTHON=python3.12
PYTHON ?= python3
BIN := .venv/bin
# A process for each core; each test file in one of them, those that take longest first.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder \
	--durations 20
# With these XLA compiles in less than a third of the time; UNFUSED is for the pinned version alone.
# The tests marked `compiled` run without them as well.
UNOPTIMIZED := --xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1
UNFUSED := --xla_cpu_use_fusion_emitters=false

.PHONY: quickstart test test-slow test-newest test-targets coverage lint types docs wheel bench clean

quickstart: .venv/.examples  ## train, monitor, evaluate, save and load a model on real data
	$(BIN)/python examples/01_first_model.py

test: .venv/.dev  ## each claim at the smallest size that shows it
	XLA_FLAGS='$(UNOPTIMIZED) $(UNFUSED)' $(PYTEST) -m 'not slow'

test-slow: .venv/.dev  ## what repeats at scale, and what asks for the programs that users get
	$(PYTEST) -m 'slow or compiled'

coverage: export COVERAGE_FILE := $(CURDIR)/.coverage
coverage: .venv/.dev  ## the lines of thinkml/ that the quick tests run, and those that all tests run
	$(BIN)/coverage erase
	XLA_FLAGS='$(UNOPTIMIZED) $(UNFUSED)' $(BIN)/coverage run $(wordlist 2,99,$(PYTEST)) -m 'not slow'
	$(BIN)/coverage combine --keep --quiet --data-file .coverage-quick .coverage.*
	$(BIN)/coverage run $(wordlist 2,99,$(PYTEST)) -m 'slow or compiled'
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --data-file .coverage-quick --format total --precision 2
	$(BIN)/coverage report --format total --precision 2

# The quick tests with the newest releases of everything, in a venv of their own.
NEWEST ?= python3.12
test-newest: .venv-newest/.dev
	XLA_FLAGS='$(UNOPTIMIZED)' $(subst .venv,.venv-newest,$(PYTEST)) -m 'not slow'

.venv-newest/.dev: pyproject.toml
	$(NEWEST) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --disable-pip-version-check --upgrade -e '.[dev]'
	@touch $@

# The programs for GPUs and TPUs, by their compilers, in a venv of their own: no device is needed,
# and in .venv the compilers would be found by every test.
test-targets: .venv-targets/.dev  ## what the compilers for GPUs and TPUs make of a training
	JAX_PLATFORMS=cpu .venv-targets/bin/python -m pytest -m 'not slow' --durations 10 tests/targets

.venv-targets/.dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-targets
	.venv-targets/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		-e '.[plan-gpu,plan-tpu]' pytest pytest-timeout scikit-learn
	@touch $@

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.dev
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# What a user installs: the README's example runs with the wheel alone.
wheel: .venv/.dev
	rm -rf dist .venv-wheel
	$(BIN)/python -m build
	$(BIN)/python -m venv .venv-wheel
	.venv-wheel/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		"$$(ls dist/*.whl)[examples]"
	sed -n '/^```python/,/^```/{/^```/d;p}' README.md > dist/readme.py
	cd dist && ../.venv-wheel/bin/python readme.py

bench: .venv/.bench  ## ThinkML beside its peers, then each part by itself
	$(BIN)/python benchmarks/race.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/streaming.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/checkpoint.py
	$(BIN)/python benchmarks/evaluation.py
	$(BIN)/python benchmarks/recording.py
	$(BIN)/python benchmarks/model_files.py
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/active.py
	$(BIN)/python benchmarks/transfer.py --rows 128 --turns 3

clean:
	rm -rf .venv .venv-newest .venv-targets .venv-wheel site build dist .pytest_cache .ruff_cache .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp per extra. A venv that could not be finished is removed, so that the next try is clean.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ThinkML needs Python \
	3.11 or later, $(PYTHON) is " + sys.version.split()[0] + ". Name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

.venv/.%: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	@touch $@
