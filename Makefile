# make demo        install glip into .venv (once), then detect objects in a drawn image
# make test        the whole test suite
# make test-fast   without the tests marked slow: full-size golden cases, several processes, killed runs, commands of docs
# make test-integrations   the adapters to other tools, each in an environment of its own with that tool
# make test-extras   each extra installed alone in a fresh environment, and what it is for run; needs room for torch
# make lint        ruff, mypy and bandit
# make clean       remove what these made
#
# PYTHON=python3.12 chooses the interpreter; PYTEST="-k golden" narrows the tests; WORKERS=1 runs them one by one.

PYTHON ?= python3
PYTEST ?=
WORKERS ?= 2
DEMO_IMAGE ?= docs/images/street.png
DEMO_PROMPT ?= a red house. a tree. a car. the sun
OUT ?= out

BIN := .venv/bin
INSTALLED := .venv/installed
READY := .venv/ready

EXTRAS ?=
TOOLS ?= transformers sam sahi cvat autodistill fiftyone demo

.PHONY: demo test test-fast test-integrations test-extras lint clean
.DELETE_ON_ERROR:

demo: $(INSTALLED)
	$(BIN)/glip detect "$(DEMO_IMAGE)" "$(DEMO_PROMPT)" --out "$(OUT)"

test: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadscope $(PYTEST)

test-fast: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadscope -m "not slow" $(PYTEST)

# The tools' requirements exclude each other: each is installed alone, with the packages of .venv behind its own.
test-integrations: $(READY)
	@for tool in $(TOOLS); do own=.venv-$$tool; \
	  { $(BIN)/python -m venv $$own \
	    && $(BIN)/python -c 'import site; print(*site.getsitepackages())' >$$(echo $$own/lib/python*/site-packages)/zz.pth \
	    && $$own/bin/python -m pip install -q --disable-pip-version-check -e ".[$$tool]" \
	    && $$own/bin/python -m pytest -rs tests/integrations/test_$$tool.py; } >$$own.log 2>&1; code=$$?; \
	  printf '%-14s %s\n' $$tool "exit $$code: $$(tail -1 $$own.log)"; \
	done | tee .venv-table; ! grep -v ' exit 0: .*passed' .venv-table

test-extras:
	$(PYTHON) tools/extras.py $(EXTRAS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/bandit -q -c pyproject.toml -r glip tools

# Installing again is needed only when what is installed changes; the code itself is read from the checkout.
$(INSTALLED): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "glip needs Python 3.11 or later; '$(PYTHON)' is $$($(PYTHON) --version 2>&1): try make PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
	  echo "'$(PYTHON)' has no venv module: install it (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 2; }
	@echo "installing into .venv: torch and other packages, some minutes the first time"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on -e .
	@touch $(INSTALLED)

$(READY): $(INSTALLED)
	@echo "installing what the tests need into .venv, some minutes the first time"
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on -e '.[test]'
	@touch $(READY)

clean:
	rm -rf .venv .venv-* build dist out .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find glip tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
