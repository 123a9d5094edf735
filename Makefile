# Each target does all of its own set-up: a fresh machine needs only Python 3.10 or newer and make.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test lint types unit slow fuzz tables measure docs docs-serve clean

demo: $(READY)
	$(BIN)/stepcache demo

test: lint types unit

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV), with the versions of constraints.txt ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test,bench]" \
		> $(VENV)/pip.log 2>&1 || { cat $(VENV)/pip.log; exit 1; }
	@touch $@

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

# One thread a process: two processes with two OpenMP threads each fight over two cores. worksteal: neighbours, which
# share fixtures, stay together.
unit: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not fuzz" $(ARGS)

# The README's tables, from benchmarks/results.
tables: $(READY)
	$(BIN)/python -m benchmarks.pages.tables
	$(BIN)/python -m benchmarks.pages.rooms

# What the README's first picture shows of a CPU, measured anew on this one: whole calls of the demo, and of SD 2.1's and
# SDXL's architectures with random weights. Two hours on one core, which nothing else should use, and 20 GB of memory.
WAYS := eager,fewer-steps,compile,compile+fewer-steps,deepcache,stepcache-eager,stepcache-compiled
BENCH := $(BIN)/stepcache bench --predict auto --modes default --variants $(WAYS)
RESULTS := benchmarks/results
measure: export OMP_NUM_THREADS = 1
measure: $(READY)
	rm -f $(RESULTS)/bench_demo.csv $(RESULTS)/bench_sd21_cpu.csv $(RESULTS)/bench_sdxl_cpu.csv
	$(BENCH) --out $(RESULTS)/bench_demo.csv --reuse 3:0,2:0,5:0,5:1 --steps 50 --guidance 3 --repeats 7 demo
	$(BENCH) --out $(RESULTS)/bench_sd21_cpu.csv --reuse 3:0 --size 256 --steps 20 --repeats 3 sd21
	$(BENCH) --out $(RESULTS)/bench_sdxl_cpu.csv --reuse 3:0 --size 256 --steps 12 --repeats 3 sdxl
	$(MAKE) tables

# The pages as a site: site/index.html. Material's notice is about the years after its present version.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

# What `make test` leaves out: more combinations of the kernels, compiled ahead of time and interpreted.
slow: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m slow

# Random U-Nets and sequences of calls, other ones each time: not part of CI, which is to say the same thing twice.
fuzz: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m fuzz

clean:
	rm -rf $(VENV) build dist site *.egg-info stepcache-demo.png
