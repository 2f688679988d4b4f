# make serve    a fresh machine ends up serving six tasks
# make test     a fresh machine ends up with the tests run
# make models   only build the artifacts that cluster.yaml names
# make check    ruff and mypy
# make measure  seconds to ready, memory, latency of one request: docs/performance.md
# make bench-encoders   throughput of encoders against the bare runtime and other servers: docs/performance.md
# make bench-generation throughput of generators against other engines: docs/performance.md
# make bench-fairness   short requests beside large ones, CPU time of the event loop: docs/performance.md
# make faults   what clients see while something fails or changes, within 30 minutes: docs/performance.md
# make soak     ten minutes under load: memory and errors
# make soak-generation  ten minutes of random joins, cancels, stops and seeds
# make lock     resolve requirements/*.lock anew after a change of pyproject.toml
# make clean    remove the environment and the artifacts

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: serve test models check measure bench-encoders bench-generation bench-fairness faults soak soak-generation lock clean

serve: models
	@exec $(BIN)/sextet serve cluster.yaml

models: $(VENV)/serve.installed
	@$(BIN)/sextet export --all cluster.yaml

# What starts a Ray cluster measures time, and Ray has ports of its own: it goes after the rest, one test after another.
test: check
	$(BIN)/python -m pytest -m "not cluster"
	$(BIN)/python -m pytest -m cluster

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

faults: $(VENV)/dev.installed models
	$(BIN)/python -m benchmarks.suites.faults

soak: $(VENV)/dev.installed
	$(BIN)/python -m benchmarks.suites.soak

soak-generation: $(VENV)/dev.installed
	$(BIN)/python -m benchmarks.suites.soak_generation

# Everything comes from the locks, so nothing is resolved. torch is the exception (requirements/torch.txt says why): what
# the locks hold for it is there first, and pip adds what the chosen build needs beyond that.
$(VENV)/serve.installed: pyproject.toml requirements/export.lock requirements/torch.txt starter/requirements.txt
	@echo "installing into $(VENV) (some minutes, once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --progress-bar on --no-deps --require-hashes -r requirements/export.lock -r starter/requirements.txt
	@$(PIP) install --progress-bar on -r requirements/torch.txt
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/dev.installed: $(VENV)/serve.installed requirements/dev.lock
	@$(PIP) install --progress-bar on --no-deps --require-hashes -r requirements/dev.lock
	@touch $@

# Versions stay where pyproject.toml allows them; `make lock UPGRADE=--upgrade` takes the newest. The smaller locks are
# parts of the largest.
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	--no-emit-package torch --custom-compile-command "make lock"

lock: $(VENV)/dev.installed
	$(LOCK) $(UPGRADE) --extra dev pyproject.toml -o requirements/dev.lock
	$(LOCK) --extra serve --extra export pyproject.toml -c requirements/dev.lock -o requirements/export.lock
	$(LOCK) --extra serve pyproject.toml -c requirements/dev.lock -o requirements/serve.lock

clean:
	rm -rf $(VENV) models
