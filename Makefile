# Everything below works from a fresh clone: it needs make and Python 3.10 or newer, and makes its own environment.
#
#   PYTHON=python3.12   the interpreter that the environment is made with
#   VENV=.venv          where the environment is; one that is there already is kept and completed
#   ARGS="-k oom -x"    more arguments for pytest

PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=

BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet
# Threads of a kernel that wait for one another leave the core to the other process.
PYTEST := OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest

# A stamp is remade when what it was made from has changed, so that only the first run installs.
MADE      := $(VENV)/.made
CORE      := $(VENV)/.core
TEST      := $(VENV)/.test
DEV       := $(VENV)/.dev
FROM      := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test test-slow test-thresholds test-grid heldin test-heldin test-matrix test-zero test-gpu test-wheel fuzz check format bench support accuracy clean distclean

help:
	@echo 'make demo         install the core and predict the memory of five methods on Llama-2-7B'
	@echo 'make test         install everything that tests need (PyTorch among it) and run them, without a GPU'
	@echo 'make test-slow    the tests that take long'
	@echo 'make test-thresholds  largest batches of all cards, five methods, three models, by both engines'
	@echo 'make test-grid    peaks by both engines: every method on every architecture, in models of full size'
	@echo 'make test-heldin  published measurements, each with the releases that were measured'
	@echo 'make test-matrix  the simulation with the oldest, a middle and the newest transformers'
	@echo "make test-zero    closed forms of ZeRO against real ranks of DeepSpeed, which it installs beside"
	@echo 'make test-gpu     the tests that need a CUDA device'
	@echo 'make test-wheel   wheel and sdist, installed without and with each extra; PYTHONS="python3.10 ..." for more'
	@echo 'make fuzz         other inputs than those of make test for readers and command line, each time anew'
	@echo 'make check        lint, format and types: ruff, mypy --strict'
	@echo 'make format       let ruff mend what it can'
	@echo 'make bench        cold start, sweeps, thresholds, replay, simulation, run, LoRA-FA: each against its bar'
	@echo 'make support      docs/support.md anew: what each engine takes, and which tests compare it'
	@echo 'make accuracy     docs/accuracy.md anew: every measured point that is known, and what the engines say of it'
	@echo 'make clean        remove caches and builds; make distclean removes the environment too'

demo: $(CORE)
	$(BIN)/lorafa-prof predict --model llama2-7b --bs 8 --seq 1024

# One process a core; the tests of a file stay together, since they share what one of them has computed.
test: $(TEST)
	$(PYTEST) -n auto --dist loadfile -m 'not slow and not heldin' $(ARGS)

test-slow: $(TEST)
	$(PYTEST) -m slow $(ARGS)

# Each model with each method is a test of its own, which prints its rows.
test-thresholds: $(TEST)
	$(PYTEST) -n auto -m slow -rP tests/simulate/test_every_card.py $(ARGS)

# In one process: the last test prints the worst of what the others have found. Some twenty minutes of one core.
test-grid: $(TEST)
	$(PYTEST) -rP tests/simulate/test_grid.py $(ARGS)

# Published measurements name the releases that ran, so each gets an environment of its own; what warns of its own age
# there is no error, and their logging calls are left alone.
OLDER := -W ignore::DeprecationWarning -W ignore::FutureWarning -p no:logging

heldin test-heldin: $(VENV)-4.48.1/.test $(VENV)-4.57.1/.test
	$(VENV)-4.48.1/bin/python -m pytest -m heldin -rP $(OLDER) tests/heldin $(ARGS)
	$(VENV)-4.57.1/bin/python -m pytest -m heldin -rP $(OLDER) tests/heldin $(ARGS)

# The oldest release that is supported, the one that published measurements were made with, and the newest.
MATRIX := tests/workload/test_releases.py tests/simulate/test_real_cpu_step.py tests/simulate/test_shapes.py -m 'not slow'

test-matrix: $(VENV)-4.45.2/.test $(VENV)-4.48.1/.test $(TEST)
	$(VENV)-4.45.2/bin/python -m pytest $(MATRIX) $(OLDER) $(ARGS)
	$(VENV)-4.48.1/bin/python -m pytest $(MATRIX) $(OLDER) $(ARGS)
	$(PYTEST) $(MATRIX) $(ARGS)
	$(PYTEST) -m slow tests/simulate/test_other_environments.py $(ARGS)

# DeepSpeed lies beside the environment, without its kernels: of its ZeRO torch's own operators are enough.
ZERO := $(VENV)-deepspeed/.made

test-zero: $(ZERO)
	PYTHONPATH=$(VENV)-deepspeed $(PYTEST) tests/zero $(ARGS)

$(ZERO): $(TEST) tests/versions/deepspeed.txt
	DS_BUILD_OPS=0 DS_ACCELERATOR=cpu $(PIP) --no-build-isolation --no-deps --upgrade --target $(VENV)-deepspeed \
	  --requirement tests/versions/deepspeed.txt
	@touch $@

test-gpu: $(TEST)
	$(PYTEST) -m gpu $(ARGS)

# The tests are the same as in make test; what they are fed is drawn anew.
fuzz: $(TEST)
	$(PYTEST) tests/fuzz --hypothesis-profile explore $(ARGS)

# The interpreters that the wheel is tried with; the first of them with every extra too.
PYTHONS ?= $(PYTHON)

test-wheel: $(MADE)
	$(BIN)/python tests/packaging/wheel.py $(ARGS) $(PYTHONS)

check: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# All run even if one misses its bar; the failure is kept.
bench: $(TEST)
	@status=0; \
	$(BIN)/python benchmarks/bench_cold_start.py || status=1; \
	$(BIN)/python benchmarks/bench_sweep.py || status=1; \
	$(BIN)/python benchmarks/bench_sweep_csv.py || status=1; \
	$(BIN)/python benchmarks/bench_frontier.py || status=1; \
	$(BIN)/python benchmarks/bench_allocator.py || status=1; \
	$(BIN)/python benchmarks/bench_simulate.py || status=1; \
	$(BIN)/python benchmarks/bench_run_overhead.py || status=1; \
	$(BIN)/python benchmarks/bench_lorafa.py || status=1; \
	$(BIN)/python benchmarks/bench_lorafa_step.py || status=1; \
	exit $$status

# Every cell of the page is a run that the engines are given: some minutes of one core.
support: $(TEST)
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.support.support_page

# Each environment answers for the points that ran with its releases; the page is made of all of them.
accuracy: $(VENV)-4.48.1/.test $(VENV)-4.57.1/.test $(TEST)
	rm -f tests/ground_truth/points.jsonl
	for venv in $(VENV)-4.48.1 $(VENV)-4.57.1 $(VENV); do \
	  HF_HUB_OFFLINE=1 $$venv/bin/python -W ignore -m tests.ground_truth.points tests/ground_truth/points.jsonl || exit 1; \
	done
	$(BIN)/python -m tests.ground_truth.accuracy_page

$(MADE):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo 'Python 3.10 or newer is needed: make PYTHON=/path/to/python3' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# The constraints are for this environment; the package itself pins nothing.
$(CORE): $(MADE) $(FROM)
	$(PIP) --constraint constraints.txt --editable .
	@touch $@

# PyTorch goes in first and alone: with the release of constraints.txt in place the other packages are content, where
# in one go with them pip may settle on another build, with gigabytes of CUDA libraries. A build of that release that
# is there already is kept.
$(TEST): $(MADE) $(FROM)
	$(PIP) --constraint constraints.txt torch
	$(PIP) --constraint constraints.txt --editable '.[test]'
	@touch $@

# An environment of other releases beside the first: .venv-4.48.1 from tests/versions/transformers-4.48.1.txt.
$(VENV)-%/.test: tests/versions/transformers-%.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)-$*
	$(VENV)-$*/bin/python -m pip --disable-pip-version-check install --quiet --constraint $< torch
	$(VENV)-$*/bin/python -m pip --disable-pip-version-check install --quiet --constraint $< --editable '.[test]'
	@touch $@

$(DEV): $(TEST)
	$(PIP) --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find lorafa_prof tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) $(VENV)-*
