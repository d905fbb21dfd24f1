# `make` lists what there is. Every target that needs it first makes .venv from requirements.lock, and again when the lock or the package's metadata change.
#   PYTHON=python3.12   the interpreter of a new .venv
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
OUT ?= runs/demo
TO ?= README.md
BIN := .venv/bin
STAMP := .venv/.installed
PIP := $(BIN)/python -m pip install -qq --progress-bar off --disable-pip-version-check
MIN_PYTHON := $(shell sed -n 's/^min_python *= *//p' settings.ini)

.PHONY: help venv test reproduce readme publish notebooks export check docs docstest lock build wheeltest clean

help: ## this list
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

test: $(STAMP) ## every notebook as a test (nbdev_test), then tests/ (pytest)
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --timing
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder

reproduce: $(STAMP) ## the paper's experiment on the embedded cohort, reduced (preset demo), into OUT=runs/demo; run again to go on after a stop
	$(BIN)/liverdis reproduce --preset demo --out $(OUT)

notebooks: $(STAMP) ## run the notebooks whose outputs are stale and store what they print, or those in NB="nbs/01_ct.ipynb ..."
	OMP_NUM_THREADS=1 PYTHONWARNINGS=ignore::FutureWarning $(BIN)/python tools/run_notebooks.py $(NB)

readme: $(STAMP) ## README.md from what nbs/index.ipynb says and shows
	$(BIN)/jupyter nbconvert --log-level WARN --to markdown --no-input --stdout nbs/index.ipynb | sed -E 's@\]\(([a-z0-9_/]+\.(ipynb|png))\)@](nbs/\1)@g' >$(TO)

publish: $(STAMP) ## keep the small files of OUT (runs/demo) in nbs/results, where notebooks and README quote them
	mkdir -p nbs/results/$(notdir $(OUT)) && cp $(addprefix $(OUT)/,results.json predictions.csv figures.npz) nbs/results/$(notdir $(OUT))

export: $(STAMP) ## notebooks to liverdis/*.py, then clean the notebooks; before every commit
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean

check: $(STAMP) ## fail when a notebook is not clean, its outputs are stale, or liverdis/ is not what the notebooks export; changes nothing
	@copy=$$(mktemp -d) && trap 'rm -rf "$$copy"' EXIT && cp -R nbs liverdis settings.ini pyproject.toml "$$copy" && \
	(cd "$$copy" && "$(CURDIR)/$(BIN)/nbdev_export" && "$(CURDIR)/$(BIN)/nbdev_clean") && \
	for p in nbs liverdis pyproject.toml; do diff -ru -x __pycache__ $$p "$$copy/$$p" || drift=1; done && \
	$(MAKE) --no-print-directory readme TO="$$copy/README.md" && diff -u README.md "$$copy/README.md" || drift=1; \
	if [ -n "$$drift" ]; then echo "notebooks, liverdis/ or README.md differ from what is made of them: run \`make export readme\`, look, commit" >&2; exit 1; fi && \
	$(BIN)/python tools/run_notebooks.py --check && echo 'notebooks clean, their outputs those of a run, liverdis/ in step'

build: ## sdist and wheel into dist/, checked as PyPI checks them
	@tools=$$(mktemp -d) && trap 'rm -rf "$$tools" build' EXIT && rm -rf build dist && \
	$(PYTHON) -m venv "$$tools" && "$$tools/bin/pip" install --quiet --disable-pip-version-check build twine && \
	"$$tools/bin/python" -m build && "$$tools/bin/twine" check --strict dist/* && \
	if tar -tzf dist/*.tar.gz | grep -E '/(nbs|tests|docs|data_manifest)/|\.(ipynb|npz|png|csv)$$'; then echo 'these do not belong into the sdist: see MANIFEST.in' >&2; exit 1; fi

wheeltest: build ## install the wheel with the newest of everything pip finds, in an environment of its own, and use it as the README does
	@env=$$(mktemp -d) && trap 'rm -rf "$$env"' EXIT && $(PYTHON) -m venv "$$env" && \
	"$$env/bin/pip" install --quiet --disable-pip-version-check --progress-bar off dist/*.whl && "$$env/bin/pip" check && \
	cd "$$env" && "$$env/bin/python" "$(CURDIR)/tools/try_package.py" "$(CURDIR)/README.md"

docs: $(STAMP) ## the site into _docs, from the notebooks as they are stored; a warning is an error
	rm -rf _docs
	$(BIN)/python docs/pages.py _proc
	$(BIN)/python -m sphinx --builder html --conf-dir docs --fresh-env --fail-on-warning --keep-going --quiet _proc _docs; \
	  failed=$$?; rm -rf _docs/.doctrees jupyter_execute; exit $$failed
	@echo "open _docs/index.html, or: $(BIN)/python -m http.server -d _docs"

docstest: $(STAMP) ## the site in a browser: every page, link, picture and width, the search; needs `make docs` and Chromium or Chrome
	$(BIN)/pytest docs

lock: ## resolve settings.ini anew into requirements.lock, for all platforms; keeps what still fits, LOCK=--upgrade takes the newest
	@tools=$$(mktemp -d) && trap 'rm -rf "$$tools"' EXIT && \
	$(PYTHON) -m venv "$$tools" && "$$tools/bin/pip" install --quiet --disable-pip-version-check uv && \
	UV_PYTHON_DOWNLOADS=never "$$tools/bin/uv" --no-config pip compile --quiet --universal --python-version $(MIN_PYTHON) --extra dev --generate-hashes \
	  --no-annotate --custom-compile-command 'make lock' $(LOCK) setup.py --output-file requirements.lock

clean: ## remove what is built or cached; runs/, phantom/ and .venv stay
	rm -rf build dist _proc _docs jupyter_execute *.egg-info .pytest_cache && find nbs liverdis tests -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf

venv: $(STAMP) ## only the environment

# An interrupted install leaves no stamp and is taken up again.
$(STAMP): requirements.lock settings.ini setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; v = tuple(map(int, "$(MIN_PYTHON)".split("."))); sys.exit(0 if sys.version_info >= v else \
	  f"liverdis needs Python $(MIN_PYTHON) or newer and $(PYTHON) is {sys.version.split()[0]}: make PYTHON=python3.x ...")'
	[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv
	@echo 'installing requirements.lock into .venv: some minutes and, on Linux, 3 GB the first time'
	$(PIP) -r requirements.lock
	$(PIP) --no-deps --no-build-isolation -e .
	@touch $@
