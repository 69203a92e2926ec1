# `make help` lists the targets. Everything make writes lies in .venv/ and build/, except the tables and
# figures of the reference run, which are committed.
SHELL := bash
.DEFAULT_GOAL := help

PRESET ?= reference
P ?=
ONLY ?=
ARGS ?=
VENV ?= .venv
# Notebooks at a time. One where parameters are yours: two models may be too large.
JOBS ?= $(if $(P),1,2)

# PY=python uses the active environment (conda, say) as it is; without it a venv is made when missing. Its stamp's name
# ends in a hash of what it was made from, as a clone's file times mean nothing.
ifndef PY
PY := $(if $(filter /%,$(VENV)),,$(CURDIR)/)$(VENV)/bin/python
ENV := $(VENV)/installed.$(shell cat pyproject.toml constraints.txt | cksum | tr -d ' ')
endif
# The first Python that is new enough and can make a venv: Debian's lacks ensurepip until python3-venv is there.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
  $$python -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

# The kernel is the one of PY, whatever the user has installed elsewhere. A value of P reaches Python as it is.
export JUPYTER_PREFER_ENV_PATH := 1
unexport JUPYTER_PATH
export P
# glibc (2.35 or newer) keeps freed memory instead of handing it back: half the time of a long pass went into page faults.
reproduce smoke verify train bench lab: export MALLOC_MMAP_THRESHOLD_ := 268435456
reproduce smoke verify train bench lab: export MALLOC_TRIM_THRESHOLD_ := 1073741824

.PHONY: help env reproduce smoke site scorecard test check verify train bench lab clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 20
	@printf '\nVariables: PRESET=name of notebooks/presets/*.yaml · P="parameter=value …" overrides it\n'
	@printf '           ONLY="03_ablation …" runs some notebooks · JOBS=1 one at a time\n'
	@printf '           ARGS="…" for pytest, srdyn.training.train, JupyterLab · PY=python for your own environment\n'

env: $(ENV)  ## create the environment in .venv (the other targets do so when it is missing)

$(VENV)/installed.%:
	@test -n "$(PYTHON)" || { echo 'no Python >= 3.11 that can make a venv: install one, or name it: make PYTHON=…'; exit 2; }
	@echo 'making $(VENV): 3 GB, more where torch brings CUDA; a few minutes, most of them downloads'
	$(PYTHON) -m venv $(VENV)
	"$(PY)" -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@rm -f $(VENV)/installed.*
	@touch $@

SITE = "$(PY)" notebooks/site/build.py --preset '$(PRESET)' --set "$$P"
reproduce: $(ENV)  ## run what is out of date among the notebooks: every table, figure, the scorecard, the site
	@"$(PY)" -m srdyn.study.reproduce $(ONLY) --preset '$(PRESET)' --set "$$P" --jobs $(JOBS)
	@$(SITE)

site: $(ENV)  ## build the pages: findings, the notebooks as they ran, manual (PRESET and P say of which run)
	@$(SITE)

smoke: $(ENV)  ## run every notebook at toy size, three at a time, into build/smoke
	@SRDYN_PROCESSES=1 "$(PY)" -m srdyn.study.reproduce $(ONLY) --preset smoke --jobs 3

scorecard: $(ENV)  ## write the verdicts of the committed tables into README, pages and figures/scorecard.md
	"$(PY)" -m srdyn.study.claims.readme

# Tests in another order with every commit, in the same one with each run of it. SEED=… for others.
SEED ?= $(shell echo $$((16#$$(git rev-parse --short=7 HEAD 2>/dev/null || echo 0))))
test: $(ENV)  ## run the tests (ARGS="-k store" for some of them, ARGS="-m slow" for the slow)
	OMP_NUM_THREADS=1 "$(PY)" -m pytest -n auto --maxprocesses 4 --dist loadfile --randomly-seed=$(SEED) $(ARGS)

STRIP := --keep-id --extra-keys "metadata.papermill cell.metadata.papermill" $(wildcard notebooks/[0-9]*.ipynb)
check: $(ENV)  ## lint, formatting, floors, notebooks without outputs and with the reference run's parameters
	"$(PY)" -m ruff check .
	"$(PY)" -m ruff format --check .
	@"$(PY)" -c 'from importlinter.cli import lint_imports_command; lint_imports_command()'
	@"$(PY)" -m nbstripout --verify $(STRIP) || { echo 'strip them: $(PY) -m nbstripout $(STRIP)'; exit 1; }
	"$(PY)" -m srdyn.study.run.parameters

train: $(ENV)  ## train the reference models; goes on where it stopped (ARGS="--help" for its options)
	"$(PY)" -m srdyn.training.train $(ARGS)

bench: $(ENV)  ## measure what everything costs, on a machine that does nothing else (ten minutes; notebook 07 draws it)
	SRDYN_RUN=reference "$(PY)" -m srdyn.bench $(ARGS)
	"$(PY)" -m srdyn.study.verify --record 'data/tables/07_cost*'

TEXTS = tests/study/test_details.py
verify: $(ENV)  ## check every committed file against its recorded hash, README and figures against tables, a sample of these against the models
	"$(PY)" -m srdyn.study.verify
	OMP_NUM_THREADS=1 "$(PY)" -m pytest -q -n auto --maxprocesses 4 -m '' tests/figures/test_redrawn.py $(TEXTS)

lab: $(ENV)  ## open JupyterLab at the notebooks
	"$(PY)" -m jupyterlab --LabApp.default_url=/lab/tree/notebooks $(ARGS)

clean:  ## remove build/ except trainings (rm -r build/train removes those, rm -r .venv the environment)
	[ ! -d build ] || find build -mindepth 1 -maxdepth 1 -not -name train -exec rm -rf {} +
