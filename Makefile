# `make help` lists the targets. Everything make writes lies in .venv/ and build/, except the tables and
# figures of the reference run, which are committed.
SHELL := bash
.SHELLFLAGS := -eo pipefail -c
.DEFAULT_GOAL := help

PRESET ?= reference
P ?=
ARGS ?=
VENV ?= .venv

# A clone's file times mean nothing, so a stamp's name ends in a hash of the content it was made from.
sha256 := $(shell command -v sha256sum || echo shasum -a 256)
hash := $(sha256) | cut -c1-16

# PY=python uses the active environment (conda, say) as it is; without it a venv is made when missing.
ifndef PY
PY := $(if $(filter /%,$(VENV)),,$(CURDIR)/)$(VENV)/bin/python
ENV := $(VENV)/installed.$(shell cat pyproject.toml constraints.txt | $(hash))
endif
# The first Python that is new enough and can make a venv: Debian's lacks ensurepip until python3-venv is there.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
  $$python -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

# The kernel is the one of PY, whatever the user has installed elsewhere.
export JUPYTER_PREFER_ENV_PATH := 1
unexport JUPYTER_PATH

# glibc (2.35 or newer) keeps freed memory instead of handing it back: half the time of a long pass went into page faults.
FAST := MALLOC_MMAP_THRESHOLD_=268435456 MALLOC_TRIM_THRESHOLD_=1073741824

.PHONY: help env reproduce smoke test check verify train bench lab clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 20
	@printf '\nVariables: PRESET=name of notebooks/presets/*.yaml · P="parameter=value …" overrides it\n'
	@printf '           ONLY="03_ablation …" runs some notebooks\n'
	@printf '           ARGS="…" for pytest, srdyn.training.train, JupyterLab · PY=python for your own environment\n'

env: $(ENV)  ## create the environment in .venv (the other targets do so when it is missing)

$(VENV)/installed.%:
	@test -n "$(PYTHON)" || { echo 'no Python >= 3.11 that can make a venv: install one, or name it: make PYTHON=…'; exit 2; }
	$(PYTHON) -m venv $(VENV)
	"$(PY)" -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@rm -f $(VENV)/installed.*
	@touch $@

# The run's name: the preset, with the overrides behind it. SRDYN_RUN tells it to srdyn.study.run.store, which writes to
# data/tables and figures for `reference` alone, for any other to build/<run>.
# A hash stands for what a folder's name cannot say.
quote := '
$(if $(findstring $(quote),$(P)),$(error P: a value's strings stand in double quotes: P='models=["a","b"] n=4'))
RUN := $(PRESET)$(if $(strip $(P)),-$(shell p='$(strip $(P))'; name=$$(printf %s "$$p" | tr ' ' '-'); \
  short=$$(printf %s "$$name" | tr -cs 'A-Za-z0-9.=_-' '-' | cut -c1-60); \
  [ "$$short" = "$$name" ] || short=$$short-$$(printf %s "$$p" | $(hash)); echo "$$short"))
OUT := build/$(RUN)
EVERY := $(patsubst notebooks/%.ipynb,%,$(wildcard notebooks/[0-9]*.ipynb))
# Notebook 07 draws what `make bench` measured; before that has written its last table there is nothing to draw.
ONLY ?= $(filter-out $(if $(wildcard data/tables/07_cost_families.csv),,07_cost),$(EVERY))
STEMS := $(sort $(ONLY))

# A notebook that reads the tables of others runs after them, and again when one of them changes.
READS_08_scorecard := $(filter-out 08_scorecard,$(STEMS))
ALSO_07_cost := $(wildcard data/tables/07_cost_*.csv)
ALSO_08_scorecard := $(if $(filter reference,$(PRESET)),$(wildcard data/tables/thorough/*_claims.csv))

# Hashing the data takes a second, hence only where it is needed.
ifneq (,$(filter reproduce,$(MAKECMDGOALS)))
ifeq (,$(wildcard notebooks/presets/$(PRESET).yaml))
$(error There is no preset "$(PRESET)"; notebooks/presets has: $(basename $(notdir $(wildcard notebooks/presets/*.yaml))))
endif
$(foreach stem,$(STEMS),$(if $(wildcard notebooks/$(stem).ipynb),,$(error ONLY: there is no notebook "$(stem)"; they are: $(EVERY))))
# papermill only warns of a parameter that the notebook at hand lacks; one that all of them lack is a slip.
$(foreach word,$(P),$(if $(shell grep -lE '"$(firstword $(subst =, ,$(word))) *[:=]' $(STEMS:%=notebooks/%.ipynb) /dev/null),,\
  $(error P: none of the notebooks $(STEMS) has the parameter "$(firstword $(subst =, ,$(word)))"; a space begins the \
  next parameter, so values have none: P='models=["a","b"] n=4')))

# What every notebook depends on, names included. Tables are left out: notebooks write them.
COMMON := $(shell find srdyn data constraints.txt notebooks/presets/$(PRESET).yaml -type f \
  -not -path 'data/tables/*' -not -name SHA256SUMS -not -path '*/__pycache__/*' -not -name '*.md' -not -name '*.tmp' \
  -print0 \
  | LC_ALL=C sort -z | xargs -0 $(sha256) | $(hash))
# Folders and files that P names count as they are now: by names, sizes and times.
NAMED := $(if $(strip $(P)),$(shell printf %s '$(P)' | grep -oE '"[^"]+"' | tr -d '"' | while read -r path; do \
  for place in "$$path" "notebooks/$$path"; do [ ! -e "$$place" ] || ls -lR "$$place"; done; done | $(hash)))
key = $(shell { cat $(1:%=notebooks/%.ipynb) $(2); echo '$(COMMON) $(P) $(NAMED)'; } | $(hash))
STAMPS := $(foreach stem,$(STEMS),$(OUT)/stamps/$(stem).$(call key,$(stem) $(READS_$(stem)),$(ALSO_$(stem))))
endif

reproduce: $(OUT)/report/index.html  ## run what is out of date among the notebooks: every table, figure, the scorecard

# Notebooks of the reference run use all cores; at toy size they mostly start up, two at a time.
ifneq ($(PRESET),smoke)
.NOTPARALLEL:
endif

smoke:  ## run every notebook at toy size, into build/smoke
	@$(MAKE) --no-print-directory -j2 reproduce PRESET=smoke

# YAML takes 1e-3 for a string: it wants 1.0e-3, and 1.0e+3 for 1e3.
YAML_REALS := -e 's/(^|[[,])(-?[0-9]+)e([-+]?[0-9])/\1\2.0e\3/g' -e 's/(^|[[,])(-?[0-9]+[.][0-9]*)e([0-9])/\1\2e+\3/g'

# What a notebook of a committed run has written, or found within tolerance, is recorded: `make verify` goes by that.
# The tables of 07_cost are those of `make bench`.
WRITES_reference = $(if $(filter 07_cost,$(stem)),,'data/tables/$(stem)*') 'figures/$(stem)*'
WRITES_thorough = 'data/tables/thorough/$(stem)*'
VERIFY := "$(PY)" -m srdyn.study.verify

# The old stamp goes first: from here on the outputs are no longer what it says. papermill writes its output
# also when a cell fails, hence the partial file. In the report, links to ../figures are read from notebooks/.
$(OUT)/stamps/%: stem = $(basename $*)
$(OUT)/stamps/%: | $(ENV)
	@mkdir -p $(OUT)/stamps $(OUT)/notebooks $(OUT)/report
	@rm -f $(OUT)/stamps/$(stem).*
	@echo 'notebooks/$(stem).ipynb → $(OUT)/notebooks/$(stem).ipynb'
	@set -f; overrides=(); for word in $(foreach word,$(P),'$(word)'); do \
	    overrides+=(-y "$${word%%=*}: $$(sed -E $(YAML_REALS) <<< "$${word#*=}")"); done; \
	  $(FAST) SRDYN_RUN=$(RUN) PYTHONHASHSEED=0 "$(PY)" -m papermill --log-level ERROR --kernel python3 --cwd notebooks \
	  --parameters_file notebooks/presets/$(PRESET).yaml "$${overrides[@]}" \
	  notebooks/$(stem).ipynb $(OUT)/notebooks/$(stem).partial.ipynb \
	  || { echo 'stopped, for the reason in the line above; as far as it came: $(OUT)/notebooks/$(stem).partial.ipynb'; exit 1; }
	@mv $(OUT)/notebooks/$(stem).partial.ipynb $(OUT)/notebooks/$(stem).ipynb
	@cd notebooks && "$(PY)" -m nbconvert --log-level=WARN --to html --embed-images --stdin \
	  --output-dir ../$(OUT)/report --output $(stem) < ../$(OUT)/notebooks/$(stem).ipynb
	$(if $(WRITES_$(RUN)),@$(VERIFY) --record $(WRITES_$(RUN)))
	@touch $@

last := $(filter $(OUT)/stamps/08_scorecard.%,$(STAMPS))
$(if $(last),$(eval $(last): $(filter-out $(last),$(STAMPS))))

$(OUT)/report/index.html: $(STAMPS)
	@mkdir -p $(@D)
	@{ echo '<!doctype html><meta charset="utf-8"><title>srdyn: $(RUN)</title><h1>srdyn: $(RUN)</h1><ol>'; \
	  (cd $(@D) && for page in [0-9]*.html; do echo "<li><a href=\"$$page\">$${page%.html}</a></li>"; done); \
	  echo '</ol>'; } > $@
	@echo 'report: $@'

test: $(ENV)  ## run the tests (ARGS="-k store" for some of them, ARGS="-m slow" for the slow)
	OMP_NUM_THREADS=1 "$(PY)" -m pytest -n auto --maxprocesses 4 $(ARGS)

STRIP = --keep-id --extra-keys "metadata.papermill cell.metadata.papermill" $(EVERY:%=notebooks/%.ipynb)
check: $(ENV)  ## lint, formatting, notebooks without outputs
	"$(PY)" -m ruff check .
	"$(PY)" -m ruff format --check .
	$(if $(EVERY),@"$(PY)" -m nbstripout --verify $(STRIP) || { echo 'strip them: $(PY) -m nbstripout $(STRIP)'; exit 1; })

train: $(ENV)  ## train the reference models; goes on where it stopped (ARGS="--help" for its options)
	$(FAST) "$(PY)" -m srdyn.training.train $(ARGS)

bench: $(ENV)  ## measure what everything costs, on a machine that does nothing else (ten minutes; notebook 07 draws it)
	$(FAST) SRDYN_RUN=reference "$(PY)" -m srdyn.bench $(ARGS)
	$(VERIFY) --record 'data/tables/07_cost*'

verify: $(ENV)  ## check every committed file against its recorded hash, README and scorecard against the tables
	$(VERIFY)

lab: $(ENV)  ## open JupyterLab at the notebooks
	$(FAST) "$(PY)" -m jupyterlab --LabApp.default_url=/lab/tree/notebooks $(ARGS)

clean:  ## remove build/ except trainings (rm -r build/train removes those, rm -r .venv the environment)
	[ ! -d build ] || find build -mindepth 1 -maxdepth 1 -not -name train -exec rm -rf {} +
