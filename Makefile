# `make` lists what there is. Every target that needs it first makes .venv from requirements.lock, and again when the lock
# or the package's metadata change.
#   PYTHON=python3.12   the interpreter of a new .venv
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
OUT ?= runs/demo
TO ?= .
TIMES ?= 10
BIN := .venv/bin
STAMP := .venv/.installed
PIP := $(BIN)/python -m pip install -qq --progress-bar off --disable-pip-version-check
MIN_PYTHON := $(shell sed -n 's/^min_python *= *//p' settings.ini)

PYTEST := $(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder
MADE := nbs liverdis pyproject.toml README.md CONTRIBUTING.md

.PHONY: help venv test slowtest reproduce readme publish play notebooks export check lint facts fuzz \
  interrupt docs docstest lock build wheeltest lowtest clean

help: ## this list
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

ifdef NB
test: $(STAMP) ## every notebook as a test, then tests/ with their coverage; or NB="nbs/method/mixture.ipynb ..." alone
	@for nb in $(NB); do OMP_NUM_THREADS=1 $(BIN)/nbdev_test --timing --path $$nb || exit 1; done
else
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --timing
	OMP_NUM_THREADS=1 $(PYTEST) -q --cov --cov-report=term
endif

slowtest: $(STAMP) ## every notebook as a test, with the cells that are marked slow
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --flags slow --timing

reproduce: $(STAMP) ## the experiment on the embedded cohort, preset demo, into OUT=runs/demo; run again to go on after a stop
	$(BIN)/liverdis reproduce --preset demo --out $(OUT)

notebooks: $(STAMP) ## run the notebooks whose outputs are stale and store what they show, or those in NB="nbs/cohort/ct.ipynb ..."
	OMP_NUM_THREADS=1 PYTHONWARNINGS=ignore::FutureWarning $(BIN)/python tools/run_notebooks.py $(NB)

readme: $(STAMP) ## README.md from what nbs/index.ipynb says and shows, and the list of notebooks in CONTRIBUTING.md
	$(BIN)/jupyter nbconvert --log-level WARN --to markdown --no-input --stdout nbs/index.ipynb | \
	  sed -E 's@\]\(([a-z0-9_/]+\.(ipynb|png)(#[^)]*)?)\)@](nbs/\1)@g' | cat -s >$(TO)/README.md
	$(BIN)/python tools/notebooks.py --map $(TO)/CONTRIBUTING.md

publish: $(STAMP) ## keep the small files of OUT (runs/demo) in nbs/results, for notebooks and README, and draw the latter's picture
	mkdir -p nbs/results/$(notdir $(OUT))
	cp $(addprefix $(OUT)/,results.json predictions.csv figures.npz) nbs/results/$(notdir $(OUT))
	$(BIN)/python tools/readme_figure.py
	$(BIN)/python tools/play.py $(OUT)
	$(BIN)/python tools/swap_figure.py $(OUT)

play: $(STAMP) ## networks, codes and pictures of OUT for the site's page Play, and the front page's moving picture
	$(BIN)/python tools/play.py $(OUT)

export: $(STAMP) ## format and clean the notebooks, then export them to liverdis/; before every commit
	$(BIN)/ruff format --quiet
	$(BIN)/nbdev_clean
	$(BIN)/nbdev_export

check: lint ## lint; and fail if a notebook is not clean, its outputs are stale, or what is made of it is not; changes nothing
	@copy=$$(mktemp -d) && trap 'rm -rf "$$copy"' EXIT && cp -R $(MADE) settings.ini "$$copy" && \
	(cd "$$copy" && "$(CURDIR)/$(BIN)/nbdev_export" && "$(CURDIR)/$(BIN)/nbdev_clean") && \
	$(MAKE) --no-print-directory --silent readme TO="$$copy" && \
	for p in $(MADE); do diff -ru -x __pycache__ -x .ipynb_checkpoints $$p "$$copy/$$p" || drift=1; done && \
	if [ -n "$$drift" ]; then echo 'not what is made of the notebooks: run `make export readme`, look, commit' >&2; exit 1; fi
	$(BIN)/python tools/run_notebooks.py --check
	@echo 'notebooks clean, their outputs those of a run; liverdis/, README.md and CONTRIBUTING.md in step'

lint: $(STAMP) ## style and docstrings (ruff), types (mypy), spelling (codespell), workflows (zizmor)
	$(BIN)/ruff check --quiet
	$(BIN)/ruff format --check --quiet
	$(BIN)/mypy
	$(BIN)/codespell . .github
	$(BIN)/zizmor --offline --quiet .github

facts: $(STAMP) ## lengths of cells and lines, types, imports that point forward, checks that cannot fail
	$(BIN)/python tools/facts.py

build: ## sdist and wheel into dist/, checked as PyPI checks them
	@tools=$$(mktemp -d) && trap 'rm -rf "$$tools" build' EXIT && rm -rf build dist && \
	$(PYTHON) -m venv "$$tools" && "$$tools/bin/pip" install --quiet --disable-pip-version-check build twine && \
	"$$tools/bin/python" -m build && "$$tools/bin/twine" check --strict dist/* && \
	names=$$(tar -tzf dist/*.tar.gz) && \
	if grep -E '/(nbs|tests|tools|docs|benchmarks|data_manifest)/|\.(ipynb|npz|png|csv)$$' <<<"$$names"; then \
	  echo 'these do not belong into the sdist: see MANIFEST.in' >&2; exit 1; fi

wheeltest: build ## install the wheel with the newest of everything, in an environment of its own, and use it as the README does
	@env=$$(mktemp -d) && trap 'rm -rf "$$env"' EXIT && $(PYTHON) -m venv "$$env" && \
	"$$env/bin/pip" install --quiet --disable-pip-version-check --progress-bar off dist/*.whl && "$$env/bin/pip" check && \
	cd "$$env" && "$$env/bin/python" "$(CURDIR)/tools/try_package.py" "$(CURDIR)/README.md"

fuzz: $(STAMP) ## 10,000 broken files to every reader, into nbs/results/attacks/fuzz.csv; a quarter of an hour
	OMP_NUM_THREADS=1 $(BIN)/python tools/fuzz.py --out nbs/results/attacks/fuzz.csv

interrupt: $(STAMP) ## stop, starve and crowd ingest, reproduce and study at random moments; TIMES=10 of each attack
	for target in ingest reproduce study; do \
	  OMP_NUM_THREADS=1 $(BIN)/python tools/interrupt.py $$target --times $(TIMES) || exit 1; done

docs: $(STAMP) ## the site into _docs, from the notebooks as they are stored; a warning is an error
	rm -rf _docs
	$(BIN)/python docs/pages.py _proc
	$(BIN)/python -m sphinx --builder html --conf-dir docs --fresh-env --fail-on-warning --keep-going --quiet _proc _docs; \
	  failed=$$?; rm -rf _docs/.doctrees jupyter_execute; exit $$failed
	@echo "open _docs/index.html, or: $(BIN)/python -m http.server -d _docs"

docstest: $(STAMP) ## the site in a browser: every page, link, picture and width; after `make docs`, with Chromium or Chrome
	$(BIN)/pytest -n auto --dist worksteal docs

# uv takes as direct only what it is asked for; the wheel alone would come with the newest of all that it requires
lowtest: build ## the same and the extras, with the oldest dependencies that settings.ini allows
	@env=$$(mktemp -d) && trap 'rm -rf "$$env"' EXIT && $(PYTHON) -m venv "$$env" && \
	"$$env/bin/pip" install --quiet --disable-pip-version-check uv && export UV_PYTHON_DOWNLOADS=never && \
	"$$env/bin/uv" --no-config pip compile --quiet --resolution lowest-direct --no-annotate --no-header \
	  --extra cluster --extra explore --extra onnx --extra pretrained \
	  --python "$$env/bin/python" setup.py --output-file "$$env/oldest.txt" && \
	"$$env/bin/uv" --no-config pip install --quiet --no-deps --python "$$env/bin/python" -r "$$env/oldest.txt" dist/*.whl && \
	"$$env/bin/pip" check && \
	cd "$$env" && "$$env/bin/python" "$(CURDIR)/tools/try_package.py" "$(CURDIR)/README.md" --oldest

lock: ## settings.ini anew into requirements.lock, for all platforms; keeps what still fits, or LOCK=--upgrade
	@tools=$$(mktemp -d) && trap 'rm -rf "$$tools"' EXIT && \
	$(PYTHON) -m venv "$$tools" && "$$tools/bin/pip" install --quiet --disable-pip-version-check uv && \
	UV_PYTHON_DOWNLOADS=never "$$tools/bin/uv" --no-config pip compile --quiet --universal \
	  --python-version $(MIN_PYTHON) --extra dev --generate-hashes --no-annotate \
	  --custom-compile-command 'make lock' $(LOCK) setup.py --output-file requirements.lock

clean: ## remove what is built or cached; runs/, phantom/ and .venv stay
	rm -rf build dist _proc _docs jupyter_execute *.egg-info .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache
	find nbs liverdis benchmarks tools docs tests -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf

venv: $(STAMP) ## only the environment

# An interrupted install leaves no stamp and is taken up again. The lock names every package, so nothing is resolved
# (pip 23 would look beyond it for what an extra like coverage[toml] needs); `pip check` says whether all of it fits.
$(STAMP): requirements.lock settings.ini setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; v = tuple(map(int, "$(MIN_PYTHON)".split("."))); sys.exit(0 if sys.version_info >= v else \
	  f"liverdis needs Python $(MIN_PYTHON) or newer and $(PYTHON) is {sys.version.split()[0]}: make PYTHON=python3.x ...")'
	[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv
	@echo 'installing requirements.lock into .venv: some minutes; on Linux, 3 GB to download the first time, 7 GB on disk'
	$(PIP) --no-deps -r requirements.lock
	$(PIP) --no-deps --no-build-isolation -e .
	$(BIN)/python -m pip check --disable-pip-version-check
	@touch $@
