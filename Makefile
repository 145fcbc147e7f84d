# Two commands do all the set-up: `make demo` and `make test`. PYTHON chooses the interpreter (3.11 or 3.12).
SHELL := /bin/bash
PY := .venv/bin/python
SCENARIO ?= smoke
GPU_SCENARIO ?= h100_8b_half
DEMO ?= $(GPU_SCENARIO) $(SCENARIO)
UI_PORT ?= 3000
export DAGSTER_HOME ?= $(CURDIR)/tmp/dagster_home

.PHONY: demo test test-fast coverage lint bench ui install lock instance clean

demo: install instance  ## a GPU engine's recorded runs (GPU_SCENARIO), then the engine on this machine (SCENARIO): every asset, and both answers
	@GST_UI_URL=http://127.0.0.1:$(UI_PORT) $(PY) -m gst_assets.cli run $(DEMO)

test: install  ## two processes, of which one runs the files whose engines take turns (pyproject.toml, one_process_tests): 25 minutes of two cores
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-fast: install  ## no engine, no service, nothing that pyproject.toml lists under slow_tests: meant for 3 minutes of two idle cores
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not engine and not services and not slow"

coverage: install
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder --cov=gst_assets --cov-report=term

lint: install
	.venv/bin/ruff format --check . && .venv/bin/ruff check . && .venv/bin/mypy

bench: install  ## quick benchmarks, each a ratio to a baseline of the same run (BENCH=--write: into docs/benchmarks.md)
	@$(PY) -W ignore benchmarks/bench.py $(BENCH)

ui: install instance  ## Dagster UI and daemon on loopback, with the demo's data (made first where there is none)
	@$(PY) -m gst_assets.cli latest $(SCENARIO) >/dev/null 2>&1 || $(MAKE) demo DEMO=$(SCENARIO)
	$(PY) -m gst_assets.cli ui --port $(UI_PORT)

install:
	@scripts/install.sh

instance:
	@mkdir -p $(DAGSTER_HOME) && { [ -f $(DAGSTER_HOME)/dagster.yaml ] || cp dagster.yaml.example $(DAGSTER_HOME)/dagster.yaml; }

lock: install  ## resolve requirements/*.in anew (needs the package indexes)
	.venv/bin/uv pip compile requirements/project.in --override requirements/overrides.in --universal --python-version 3.11 \
	  --no-emit-index-url --no-emit-find-links --no-annotate --no-header -q -o requirements/lock.txt
	@# every line is for Linux x86-64 below 3.13, so that marker says nothing
	sed -i "s/ ; python_full_version < '3.13' and platform_machine == 'x86_64' and sys_platform == 'linux'$$//; s/ and platform_machine == 'x86_64' and sys_platform == 'linux'$$//" requirements/lock.txt

clean:
	rm -rf .venv tmp
