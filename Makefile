# Every target makes the environment that it needs first; nothing outside this folder is touched.
PYTHON ?= python3
RUN = .venv/bin/python
STUDY = config/studies/twoD.yaml

.PHONY: train test lint size study bench
train: .venv/ready            ## train the beta-VAE of config/twoD.yaml; again: resume
	$(RUN) train.py --config config/twoD.yaml

test: .venv/ready-dev lint    ## the whole test suite
	$(RUN) -m pytest -n auto --dist worksteal

lint: .venv/ready-dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

size: .venv/ready             ## lines of code: every file, the sum, the median
	$(RUN) tests/test_size.py

study: .venv/ready            ## every configuration with five seeds: days on two cores; again: resume
	$(RUN) study.py run $(STUDY)
	$(RUN) evaluate.py --metrics all --checkpoint runs/studies/twoD/*/seed?
	$(RUN) study.py report $(STUDY)

bench: .venv/ready            ## images per second of training, beside a plain PyTorch loop
	$(RUN) benchmarks/speed.py --json benchmarks/speed.json

.venv/bin/python:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=...')"
	$(PYTHON) -m venv .venv || { rm -rf .venv; echo "python's venv module is needed (Debian: python3-venv)"; exit 1; }

.venv/ready: .venv/bin/python requirements.txt
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/ready-dev: .venv/ready requirements-dev.txt
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	# the reference of the metrics' tests; its own requirements (TensorFlow 1) are not needed
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps disentanglement-lib==1.5
	touch $@
