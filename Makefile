# Two commands: `make demo` shows it, `make test` proves it. Both set up .venv by themselves.
# DEVICE=cuda installs the CUDA build of vLLM instead of the CPU one.

PYTHON ?= python3.11
DEVICE ?= cpu
RUN := .venv/bin/python
INSTALLED := .venv/installed-$(DEVICE)

.PHONY: demo experiment test lint lock clean

demo: $(INSTALLED)
	rm -rf outputs/quickstart outputs/quickstart-continued
	$(RUN) -m engine run pipelines/specs/quickstart.yaml \
		run.name=quickstart-continued run.output_dir=outputs/quickstart-continued \
		source_models=[] objective.lm_loss_weight=1.0 evaluation.corpora={}
	$(RUN) -m engine run pipelines/specs/quickstart.yaml \
		'evaluation.models={"continued training": outputs/quickstart-continued/export}'

# Writes pipelines/experiment/RESULTS.md. CORPORA=FOLDER takes the three largest files of a folder for setting B.
experiment: $(INSTALLED)
	OMP_NUM_THREADS=1 $(RUN) -m pipelines.experiment $(if $(CORPORA),--corpora $(CORPORA))

test: $(INSTALLED)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pytest

lint: $(INSTALLED)
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

lock: $(INSTALLED)
	$(RUN) requirements/lock.py

clean:
	rm -rf outputs .venv

$(INSTALLED): requirements/$(DEVICE).txt
	$(PYTHON) -m venv --clear .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --requirement requirements/$(DEVICE).txt
	touch $(INSTALLED)
