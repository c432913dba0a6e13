# `make demo` shows the product, `make test` checks it. Both make and own .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Compiled code is kept: else each of the tests' processes would compile all of it, and all assertions, anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup demo test lint types contracts compiled unit test-real requirements clean

setup: $(STAMP)

$(STAMP): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Flyball needs Python 3.11 or newer; set PYTHON=python3.12, say")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

demo: setup
	$(BIN)/flyball demo

# The checks share the cores with the compilation of engine and tests, which every process of the tests would begin anew.
test: setup
	@$(MAKE) --no-print-directory -j2 --output-sync=target types lint contracts compiled
	@$(MAKE) --no-print-directory unit

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

contracts: setup
	$(BIN)/lint-imports

compiled: setup
	$(BIN)/pytest -n 0 -m "not real" -k "large_batches and round_robin" tests

unit: setup
	$(BIN)/pytest -n 4 --dist worksteal -m "not real" tests

# With the real parts that .ci/run installs: a vLLM server, PostgreSQL, Prometheus, HAProxy, a LiteLLM proxy, Ray Serve, Docker, llama.cpp, OSCAR's client, Chromium.
# What mostly waits runs side by side; what runs or measures a model server by itself afterwards, whatever came of the first.
test-real: setup
	@status=0; \
	$(BIN)/pytest -n 3 --dist loadfile -m "real and not alone" tests || status=1; \
	$(BIN)/pytest -m "real and alone" tests || status=1; \
	exit $$status

# Pins versions and hashes from pyproject.toml; needs `uv` on the PATH.
requirements:
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --upgrade --quiet \
	  pyproject.toml --extra aws --extra azure --extra forecast --extra postgres --extra ray --group dev -o requirements/dev.txt
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --quiet \
	  pyproject.toml --extra aws --extra azure --extra postgres -c requirements/dev.txt -o requirements/run.txt
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --quiet \
	  pyproject.toml --extra silicon -c requirements/dev.txt -o requirements/silicon.txt
	printf 'litellm[proxy]==1.106.2\nprometheus-client\n' | uv pip compile --universal --python-version 3.11 --generate-hashes \
	  --no-annotate --no-header --quiet - -o requirements/litellm.txt
	echo 'ray[serve]==2.60.0' | uv pip compile --universal --python-version 3.11 --generate-hashes \
	  --no-annotate --no-header --quiet - -o requirements/ray-serve.txt
	echo 'oscar-python==2.2.0' | uv pip compile --universal --python-version 3.11 --generate-hashes \
	  --no-annotate --no-header --quiet - -o requirements/oscar.txt

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
