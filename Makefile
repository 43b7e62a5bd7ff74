# Everything here is one command away from a fresh clone; `make` alone lists it.
PYTHON ?= python3
RUN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types bench gpu-check damage clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: ## build .venv and .venv-argilla for this machine (a second run has nothing to do)
	@$(PYTHON) -m accord.bootstrap

# `accord demo` exits with the gate's verdict: 0 PASS, 10 FAIL, 11 INCONCLUSIVE. All three are a demo that ran to its
# end, so make succeeds on them and prints which it was; make could not pass 10 or 11 on in any case, since it exits
# with 2 for every failing recipe. Who needs the code itself calls `.venv/bin/accord demo`.
demo: setup ## one whole round on the bundled model, to the gate's verdict
	@$(RUN)/accord demo; code=$$?; case $$code in \
	  0) echo "demo finished: the gate says PASS (accord demo exits 0)";; \
	  10) echo "demo finished: the gate says FAIL, the new model may not replace the old one (accord demo exits 10)";; \
	  11) echo "demo finished: the gate says INCONCLUSIVE, too little evidence to decide (accord demo exits 11)";; \
	  *) echo "demo did not finish (accord demo exits $$code); its last lines above say what to do" >&2; exit $$code;; \
	esac

test: ## everything the tests need, browser included, then all tests
	@$(PYTHON) -m accord.bootstrap --test
	$(RUN)/accord eval install-suites
	$(RUN)/python -m pytest -n auto --dist loadfile --durations 20

lint: setup ## ruff: rules and formatting
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .

types: setup ## mypy
	$(RUN)/mypy

# Files in benchmarks/ are benchmarks; what they share is in benchmarks/helpers. A peer that is missing stops only its own.
BENCHMARKS := $(sort $(wildcard benchmarks/*.py))

bench: setup ## the performance claims, each against a named peer; one JSON line each
	@failed=; for script in $(BENCHMARKS); do \
	  echo "$$script"; $(RUN)/python "$$script" || failed="$$failed $$script"; \
	done; [ -z "$$failed" ] || { echo "did not finish:$$failed" >&2; exit 1; }

gpu-check: setup ## what only GPUs can prove, in ten minutes: one line a check, fails on any difference
	@$(RUN)/python tests/gpu_check.py

damage: setup ## damaged folders, settings and files before every command: a table of what is said, fails on a traceback
	@$(RUN)/python tests/damaged_input.py 2>/dev/null

clean: ## remove caches; keeps environments and runs
	rm -rf .pytest_cache .mypy_cache .ruff_cache dist
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
