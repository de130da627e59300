# Two commands do all their own set-up: `make bench` and `make test`.

PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/python

.PHONY: bench test live soak venv
.DELETE_ON_ERROR:

bench: venv  ## measure this machine's ladder, write the record and the charts, print the table
	$(RUN) -m pytest --benchmark $(ARGS)

test: export OMP_NUM_THREADS = 1
test: venv  ## all tests, a file at a time on each of two processes
	$(RUN) -m pytest -m "not live and not soak" -n 2 --dist loadfile $(ARGS)

live: venv  ## the harness tested by measuring for real: a quarter of an hour
	$(RUN) -m pytest -m live -s $(ARGS)

soak: venv  ## kills, mutations and long runs: a quarter of an hour
	$(RUN) -m pytest -m soak -s $(ARGS)

venv: $(VENV)/installed  ## the environment, in .venv

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if v >= (3, 11) else f"error: Python {v[0]}.{v[1]} is too old; install 3.11 or newer, or: make PYTHON=/path/to/python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@
