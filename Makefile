# make serve    a fresh machine ends up serving six tasks
# make test     a fresh machine ends up with the tests run
# make models   only build the artifacts that cluster.yaml names
# make check    ruff and mypy
# make measure  seconds to ready, memory, latency of one request: docs/performance.md
# make bench-encoders   throughput of encoders against the bare runtime and other servers: docs/performance.md
# make bench-generation throughput of models that write against other engines: docs/performance.md
# make bench-fairness   short requests beside large ones, CPU time of the event loop: docs/performance.md
# make soak     ten minutes under load: memory and errors
# make soak-generation  ten minutes of random joins, cancels, stops and seeds
# make clean    remove the environment and the artifacts

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: serve test models check measure bench-encoders bench-generation bench-fairness soak soak-generation clean

serve: models
	@exec $(BIN)/sextet serve cluster.yaml

models: $(VENV)/serve.installed
	@$(BIN)/sextet export --all cluster.yaml

# Tiny models: threads that spin for each other would take longer than the work.
test: check
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest

check: $(VENV)/dev.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

measure: $(VENV)/dev.installed models
	$(BIN)/python -m benchmarks.suites.footprint cluster.yaml

bench-encoders: $(VENV)/dev.installed
	$(BIN)/python -m benchmarks.suites.encoders

bench-generation: $(VENV)/dev.installed
	$(BIN)/python -m benchmarks.suites.generation

bench-fairness: $(VENV)/dev.installed
	$(BIN)/python -m benchmarks.suites.fairness

soak: $(VENV)/dev.installed
	$(BIN)/python -m benchmarks.suites.soak

soak-generation: $(VENV)/dev.installed
	$(BIN)/python -m benchmarks.suites.soak_generation

$(VENV)/serve.installed: pyproject.toml starter/requirements.txt
	@echo "installing into $(VENV) (some minutes, once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --progress-bar on -e '.[serve,export]'
	@$(PIP) install --no-deps --require-hashes -r starter/requirements.txt
	@touch $@

$(VENV)/dev.installed: $(VENV)/serve.installed
	@$(PIP) install --progress-bar on -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) models
