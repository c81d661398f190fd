# make run    set up; run the built-in guest, and where apt can give it Linux, with perf in it, under three designs
# make test   set up, run the linters and the tests
# make bench  set up, run the benchmarks
PYTHON ?= python3
BIN := .venv/bin
TESTERS ?= 2

.PHONY: run test lint pytest bench clean

run: .venv/.run
	$(BIN)/pmuvisor run demo
	@if $(BIN)/pmuvisor guest fetch linux && $(BIN)/pmuvisor guest fetch perf; then \
		$(BIN)/pmuvisor compare linux --mhz 3000 --append norandmaps --designs emulated,partitioned,lazy \
			--add examples/profile.sh -- sh profile.sh; \
	else \
		echo "make run: no Linux guest here (see above); any arm64 kernel will do: pmuvisor run linux --kernel FILE"; \
	fi

test: .venv/.test lint pytest

lint: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

pytest: .venv/.test
	$(BIN)/pytest -n $(TESTERS) --dist loadfile

bench: .venv/.test
	$(BIN)/python -m benchmarks

.venv/.run: pyproject.toml tools/setup
	@PYTHON="$(PYTHON)" tools/setup run

.venv/.test: pyproject.toml tools/setup
	@PYTHON="$(PYTHON)" tools/setup test

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist src/*.egg-info
