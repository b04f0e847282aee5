# On a machine with Python 3.11, 3.12 or 3.13, each of these is all that is needed:
#   make train   install the locked packages into .venv and train on the drawn sample
#   make distill install as well, and let DenseNet169 teach ResNet18 on it
#   make test    install the packages for testing as well, and check style, types and behaviour
#   make test-faults   check kills, full disks, damaged files and odd settings, which takes longer
# Options of train.py or pytest go in ARGS, another Python in PYTHON:
#   make train ARGS="--seeds 1" PYTHON=python3.12

PYTHON ?= python3
POETRY ?= poetry
ARGS ?=
VENV_PYTHON = .venv/bin/python
PYTEST = $(VENV_PYTHON) -m pytest --numprocesses 2 --dist loadfile
PIP_INSTALL = $(VENV_PYTHON) -m pip install --disable-pip-version-check --require-hashes

.PHONY: train distill test test-faults lock clean

train: .venv/.runtime-installed
	$(VENV_PYTHON) train.py --data sample --resume $(ARGS)

distill: .venv/.runtime-installed
	$(VENV_PYTHON) knowledge_distillation.py --data sample --resume $(ARGS)

test: .venv/.test-installed
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m mypy
	$(PYTEST) $(ARGS)

test-faults: .venv/.test-installed
	FAULTS=whole $(PYTEST) tests/test_faults*.py tests/test_ranks.py tests/test_script.py $(ARGS)

# The stamps are written last, so an install that was interrupted is done again, from an empty .venv.
.venv/.runtime-installed: requirements.txt
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "make: there is no $(PYTHON); install Python 3.11, 3.12 or 3.13, or name one: make PYTHON=..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "make: Python 3.11, 3.12 or 3.13 is needed and $(PYTHON) is another; name one: make PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "make: $(PYTHON) cannot make virtual environments; on Debian and Ubuntu install python3-venv" >&2; exit 1; }
	@echo "Installing the locked packages into .venv: 5 GB on Linux, a few minutes, once."
	@"$(PYTHON)" -m venv --clear .venv
	@$(PIP_INSTALL) -r requirements.txt
	@touch $@

.venv/.test-installed: requirements-test.txt .venv/.runtime-installed
	@$(PIP_INSTALL) -r requirements-test.txt
	@touch $@

# Needs Poetry 2.2 or later with poetry-plugin-export. Keeps every version that still fits.
lock:
	$(POETRY) lock
	$(POETRY) export --without-urls --output requirements.txt
	$(POETRY) export --without-urls --only test --output requirements-test.txt

# Keeps photos and the runs under output/: they can take hours to recreate.
clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
