# Everything starts from an empty clone: Python >= 3.11, git, make and a package index are enough.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
HELM ?= $(shell command -v helm)
CHART := charts/tensor-fusion-autoscaler

.PHONY: help setup system demo test check pytest bench crds chart manifests fix constraints clean

help:  ## This list
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

setup: $(READY)  ## Make .venv with the exact versions of constraints.txt
$(READY): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python >= 3.11 is needed, $(PYTHON) is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

system:  ## Install what real-part tests need (Prometheus, a C compiler), where this user may
	@tests/system-packages

demo: $(READY)  ## A simulated cluster behind real agents, scaled by the real controller
	$(BIN)/tf-autoscaler demo

test: $(READY) system check pytest  ## All checks and all tests

check: $(READY)  ## Format, lint, types, layers, generated files
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/tf-autoscaler crds --check crds
	$(BIN)/tf-autoscaler crds --check $(CHART)/files/crds
	$(BIN)/tf-autoscaler crds --docs --check docs/reference
	@$(if $(HELM),$(HELM) lint --quiet --strict $(CHART),echo 'helm is not found (HELM names it): the chart is not linted')

# Two at a time, as many tests wait for real processes; a file's tests share what they started.
pytest: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile

bench: $(READY)  ## Measure; the numbers belong into docs/benchmarks.md
	$(BIN)/python -m tests.benchmarks

crds: $(READY)  ## Generate crds/, the chart's copy and docs/reference/ from the model
	$(BIN)/tf-autoscaler crds crds
	$(BIN)/tf-autoscaler crds $(CHART)/files/crds
	$(BIN)/tf-autoscaler crds --docs docs/reference

chart: crds  ## Pack the chart into dist/ (needs helm)
	$(HELM) package --destination dist $(CHART)

manifests:  ## Render the plain manifests of deploy/ from the chart (needs helm)
	{ echo '# Rendered from $(CHART) by `make manifests`; how to apply them: docs/install.md'; \
	cat deploy/namespace.yaml; \
	$(HELM) template tf-autoscaler $(CHART) --namespace tf-autoscaler --values deploy/values.yaml \
	| sed -E '/^# Source: |managed-by: Helm|helm.sh\/chart: /d'; } > deploy/tf-autoscaler.yaml

fix: $(READY)  ## Format, and mend what the linter can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

constraints:  ## Pin pyproject's ranges anew (needs uv)
	uv pip compile --universal --python-version 3.11 --generate-hashes --extra dev --no-header --no-annotate --upgrade \
		--quiet pyproject.toml -o constraints.txt
	@! grep -nE '^--|://' constraints.txt

clean:  ## Remove what was made here
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
