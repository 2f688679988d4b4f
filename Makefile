# make serve    a fresh machine ends up serving six tasks
# make test     a fresh machine ends up with the tests run
# make models   only build the artifacts that cluster.yaml names
# make check    ruff and mypy
# make measure  seconds to ready, memory, latency of one request: docs/performance.md
# make bench-encoders   throughput of encoders against the bare runtime and other servers: docs/performance.md
# make bench-generation throughput of generators against other engines: docs/performance.md
# make bench-fairness   short requests beside large ones, CPU time of the event loop: docs/performance.md
# make bench-scale      replicas that come and go, and what planning them says: docs/performance.md
# make bench-service    what metrics, aliases, gRPC and shares of the traffic cost: docs/performance.md
# make faults   what clients see while something fails or changes, within 30 minutes: docs/performance.md
# make soak     ten minutes under load: memory and errors
# make soak-generation  ten minutes of random joins, cancels, stops and seeds
# make transformers5    what `sextet export --exporter transformers5` runs in, beside this environment
# make lock     resolve requirements/*.lock anew after a change of pyproject.toml
# make wheels   the folder that deploy/gpu/install.sh installs from
# make clean    remove the environment and the artifacts
#
# RUNTIME=gpu installs ONNX Runtime for GPUs in place of the one for CPUs: make serve RUNTIME=gpu
# TORCH_INDEX is where torch's build for CPUs is found, beside the indexes that pip knows: a mirror, or nothing

PYTHON ?= python3
RUNTIME ?= cpu
# PyPI's torch for Linux is the build for CUDA, with gigabytes of it. An index that is not reached costs ten seconds.
export TORCH_INDEX ?= $(if $(filter gpu,$(RUNTIME)),,https://download.pytorch.org/whl/cpu)
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: serve test models check measure bench-encoders bench-generation bench-fairness bench-scale bench-service faults soak soak-generation transformers5 lock wheels clean

serve: models
	@exec $(BIN)/sextet serve cluster.yaml

models: $(VENV)/serve-$(RUNTIME).installed
	@$(BIN)/sextet export --all cluster.yaml

# What starts a Ray cluster measures time, and Ray has ports of its own: it goes after the rest, one test after another.
test: check $(VENV)/transformers5.installed $(VENV)/kserve.installed
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

bench-scale: $(VENV)/dev.installed
	$(BIN)/python -m benchmarks.suites.scale

bench-service: $(VENV)/dev.installed
	$(BIN)/python -m benchmarks.suites.service

faults: $(VENV)/dev.installed models
	$(BIN)/python -m benchmarks.suites.faults

soak: $(VENV)/dev.installed
	$(BIN)/python -m benchmarks.suites.soak

soak-generation: $(VENV)/dev.installed
	$(BIN)/python -m benchmarks.suites.soak_generation

# Everything comes from the locks, so nothing is resolved. torch is the exception (requirements/torch.txt says why): what
# the locks hold for it is there first, and pip adds what the chosen build needs beyond that. The two runtimes share a
# folder, so the other one leaves before this one comes. Python compiles modules when they are imported first: of all that
# is installed, that is a tenth.
$(VENV)/serve-$(RUNTIME).installed: pyproject.toml requirements/export.lock requirements/$(RUNTIME).lock \
		requirements/torch.txt starter/requirements.txt
	@echo "installing into $(VENV) (some minutes, once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@rm -f $(VENV)/*.installed
	@$(PIP) uninstall -qq --yes $(if $(filter gpu,$(RUNTIME)),onnxruntime,onnxruntime-gpu)
	@$(PIP) install --progress-bar on --no-compile --no-deps --require-hashes -r requirements/export.lock \
		-r requirements/$(RUNTIME).lock -r starter/requirements.txt
	@$(PIP) install --progress-bar on --no-compile $(addprefix --extra-index-url ,$(TORCH_INDEX)) -r requirements/torch.txt
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/dev.installed: $(VENV)/serve-$(RUNTIME).installed requirements/dev.lock
	@$(PIP) install --progress-bar on --no-compile --no-deps --require-hashes -r requirements/dev.lock
	@touch $@

transformers5: $(VENV)/transformers5.installed

# Environments inside the other one, whose packages they take where their lock names no other version: torch is there once.
$(VENV)/transformers5.installed $(VENV)/kserve.installed: $(VENV)/%.installed: $(VENV)/serve-$(RUNTIME).installed \
		requirements/%.lock
	@echo "installing $* into $(VENV)/$*"
	@rm -rf $(VENV)/$*
	@$(BIN)/python -m venv --without-pip $(VENV)/$*
	@$(BIN)/python -c "import sysconfig; print(f'import site; site.addsitedir({sysconfig.get_path(\"purelib\")!r})')" \
		> $$($(VENV)/$*/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/outer.pth
	@$(PIP) --python $(VENV)/$*/bin/python install --progress-bar on --no-compile --no-deps --require-hashes \
		-r requirements/$*.lock
	@touch $@

# Versions stay where pyproject.toml allows them; `make lock UPGRADE=--upgrade` takes the newest. dev.lock is the largest,
# and the others take their versions from it. A runtime is in cpu.lock and gpu.lock alone, with what it needs.
RESOLVE := $(BIN)/uv pip compile --quiet --generate-hashes --no-annotate --custom-compile-command "make lock"
COMPILE := $(RESOLVE) --no-emit-package torch pyproject.toml
UNIVERSAL := --universal --python-version 3.11
LOCK := $(COMPILE) $(UNIVERSAL)

lock: $(VENV)/dev.installed
	$(LOCK) $(UPGRADE) --extra dev -o requirements/dev.lock
	$(LOCK) --extra serve --extra export -c requirements/dev.lock -o requirements/export.lock
	$(LOCK) --extra serve -c requirements/dev.lock -o requirements/serve.lock
	$(LOCK) $(UPGRADE) --extra cpu -c requirements/dev.lock -o requirements/cpu.lock
	$(LOCK) $(UPGRADE) --extra gpu -c requirements/dev.lock -o requirements/gpu.lock
	$(LOCK) $(UPGRADE) --extra transformers5 -o requirements/transformers5.lock
	$(RESOLVE) $(UNIVERSAL) requirements/sbom.in -c requirements/dev.lock -o requirements/sbom.lock
	$(RESOLVE) $(UNIVERSAL) $(UPGRADE) requirements/kserve.in -o requirements/kserve.lock
	$(COMPILE) --python-version 3.12 --python-platform x86_64-manylinux_2_28 --extra serve requirements/gpu-proof.in \
		-c requirements/dev.lock -c requirements/gpu.lock -c requirements/torch.txt -o requirements/gpu-proof.lock

# Half a gigabyte; deploy/gpu/wheels.py says what the folder holds. `make wheels MIB=26` cuts it into smaller batches.
wheels: $(VENV)/dev.installed
	$(BIN)/python deploy/gpu/wheels.py make deploy/gpu/wheels $(MIB)

clean:
	rm -rf $(VENV) models
