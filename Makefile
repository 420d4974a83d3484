# Two commands: `make demo` shows it, `make test` proves it. Both set up .venv by themselves.

GPUS := $(shell nvidia-smi --list-gpus 2>/dev/null)
# The pinned set: cuda where an NVIDIA GPU answers, else cpu. DEVICE=cpu takes the CPU set on any machine.
DEVICE ?= $(if $(findstring GPU 0:,$(GPUS)),cuda,cpu)
ifeq ($(filter cpu cuda,$(DEVICE)),)
$(error DEVICE is "$(DEVICE)"; it can be cpu or cuda)
endif
# The first Python 3.11 or 3.12 that can make a virtual environment. PYTHON=/path/to/python takes another.
PYTHON ?= $(shell for python in python3.11 python3.12 python3 python; do \
	$$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null \
	&& echo $$python && break; done)
RUN := .venv/bin/python
INSTALLED := .venv/installed-$(DEVICE)

.PHONY: demo experiment experiment-real test lint lock clean

demo: $(INSTALLED)
	rm -rf outputs/quickstart outputs/quickstart-continued
	$(RUN) -m engine run pipelines/specs/quickstart.yaml \
		run.name=quickstart-continued run.output_dir=outputs/quickstart-continued \
		source_models=[] objective.lm_loss_weight=1.0 evaluation.corpora={}
	$(RUN) -m engine run pipelines/specs/quickstart.yaml \
		'evaluation.models={"continued training": outputs/quickstart-continued/export}'

# Writes a chapter of pipelines/experiment/RESULTS.md, of real models: CORPORA=FOLDER has the texts. Hours.
experiment-real: $(INSTALLED)
	OMP_NUM_THREADS=1 $(RUN) -m pipelines.experiment.real $(CORPORA)

# Writes pipelines/experiment/RESULTS.md. CORPORA=FOLDER takes the three largest files of a folder for setting B.
experiment: $(INSTALLED)
	OMP_NUM_THREADS=1 $(RUN) -m pipelines.experiment $(if $(CORPORA),--corpora $(CORPORA))

test: $(INSTALLED)
	@requirements/chromium.sh
	@requirements/prometheus.sh
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pytest --numprocesses 2 --dist loadfile tests/house tests/unit tests/golden
	$(RUN) -m pytest tests/integration tests/chaos tests/cluster
	$(RUN) -m pytest tests/gpu/test_capture.py
	$(RUN) -m pytest tests/gpu --ignore=tests/gpu/test_capture.py

lint: $(INSTALLED)
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

# Keeps every pin that still fits. UPGRADE=--upgrade takes the newest of all, UPGRADE='--upgrade-package NAME' of one.
lock: $(INSTALLED)
	$(RUN) requirements/lock.py $(UPGRADE)

clean:
	rm -rf outputs .venv

# The stamp says that the set is whole: it is written last, and the installation empties .venv first.
$(INSTALLED): requirements/$(DEVICE).txt
	$(if $(PYTHON),,$(error no Python 3.11 or 3.12 with its modules venv and ensurepip; \
		install one (Debian, Ubuntu: python3.11-venv), or name one: make PYTHON=/path/to/python))
	@$(PYTHON) requirements/install.py $(DEVICE)
	@touch $(INSTALLED)
