# Everything a checkout needs, one word each. `make` alone lists the words.
.DEFAULT_GOAL := help
.PHONY: help setup setup-hosts demo test hosts check gpu-check model bindings bench bench-quick chaos fuzz clean

# Not called PYTHON: that is the name of the interpreter setup starts from.
PY := .venv/bin/python

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## make .venv with vllmport, its tools and the engine for this machine
	@scripts/setup.sh

setup-hosts: # what the tests of the hosts need; what cannot be installed is said
	@scripts/setup_hosts.sh

demo: setup ## start a pool on the bundled model and watch it answer
	@$(PY) -m vllmport.pool.demo

test: setup setup-hosts ## run every test (ARGS="-k name" to choose)
	@$(PY) -m pytest $(ARGS)

hosts: setup setup-hosts ## build the hosts in other languages and run their tests
	@$(PY) -m pytest tests/hosts $(ARGS)

check: setup ## lint, formatting and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

gpu-check: ## run the tests that need an NVIDIA GPU (PY=python for another environment)
	@if [ ! -e /dev/nvidiactl ] && [ ! -e /dev/dxg ]; then \
	    echo "gpu-check: there is no NVIDIA GPU on this machine; nothing was checked"; \
	else \
	    { command -v $(PY) >/dev/null || $(MAKE) setup; } && $(PY) -m pytest -m gpu tests/gpu $(ARGS); \
	fi

model: setup ## train the bundled tiny model and its adapter again
	$(PY) scripts/build_tiny_model.py

bindings: setup ## write the manifest of the installed vLLM, and the types made of it
	$(PY) scripts/manifest.py
	$(PY) scripts/bindings.py
	$(PY) scripts/node_types.py
	$(PY) scripts/api_manifest.py
	$(PY) scripts/api_bindings.py

bench: setup ## measure against the peers and write docs/performance.md; twenty minutes (ARGS="--section life")
	@$(PY) -m bench $(ARGS)

bench-quick: setup ## measure calls and tokens a second, in a minute or so
	@$(PY) bench/quick.py

chaos: setup ## kill everything at every moment and see what is left; half an hour (ARGS="--quick")
	@$(PY) -m chaos $(or $(ARGS),--keep)

fuzz: setup ## send a million damaged messages to a pool that serves others (ARGS="--frames N")
	@$(PY) scripts/fuzz_pool.py $(ARGS)

clean: ## remove what the tools left, and .venv
	rm -rf hosts/node/node_modules hosts/node/dist hosts/c/build hosts/elixir/_build
	rm -rf .venv .bench-venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist htmlcov .coverage .coverage.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
