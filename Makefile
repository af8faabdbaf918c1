# Every target makes the environment that it needs first; nothing outside this folder is touched.
PYTHON ?= python3
SEEDS = 0 1 2
MODELS = twoD_infogan=infogan twoD_infogan_sn=infogan_sn \
  twoD_infogan_broadcast=infogan_broadcast twoD_infogan_cr=infogan_cr twoD_vae=vae1 twoD=vae4
RUN = .venv/bin/python

.PHONY: train test lint results figure6 study bench
train: .venv/ready            ## the beta-VAE of config/twoD.yaml; again: goes on or says complete
	$(RUN) train.py --config config/twoD.yaml

test: .venv/ready-dev lint    ## the whole test suite
	$(RUN) -m pytest -n auto --dist worksteal

lint: .venv/ready-dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

results: .venv/ready          ## what res/2dshapes holds: train all seeds, publish, score
	for model in $(MODELS); do run=$${model%=*} name=$${model#*=}; \
	  for seed in $(SEEDS); do \
	    $(RUN) train.py --config config/$$run.yaml seed=$$seed || exit; \
	    if [ $$seed = 0 ]; then $(RUN) publish.py --run runs/$$run/seed0 --name $$name; \
	    else $(RUN) publish.py --run runs/$$run/seed$$seed --name $${name}_seed$$seed \
	      --out res/2dshapes/seeds --no-pictures; fi || exit; \
	  done; \
	done
	$(RUN) evaluate.py --metrics all --json res/2dshapes/metrics.json \
	  --checkpoint res/2dshapes/*.pt res/2dshapes/seeds/*.pt
	for model in $(MODELS); do name=$${model#*=}; \
	  cp runs/evaluated/$$name/codes.png res/2dshapes/$$name.png && \
	  cp runs/evaluated/$$name/matrix_mig.png res/2dshapes/$${name}_matrix.png || exit; \
	done
	rm -f res/2dshapes/metrics_*.json  # of earlier runs
	$(MAKE) figure6

figure6: .venv/ready          ## the paper's Figure 6: baselines beside the models of metrics.json
	$(RUN) figure6.py

study: .venv/ready            ## every objective, five seeds: days on two cores; again: goes on
	$(RUN) sweep.py --study config/studies/twoD.yaml
	$(RUN) report.py --study config/studies/twoD.yaml

bench: .venv/ready            ## images a second of training, seconds of every metric
	$(RUN) benchmarks/train_speed.py --json benchmarks/train_speed.json
	$(RUN) benchmarks/metrics.py

.venv/bin/python:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=...')"
	$(PYTHON) -m venv .venv || { rm -rf .venv; echo "python's venv module is needed (Debian: python3-venv)"; exit 1; }

.venv/ready: .venv/bin/python requirements.txt
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/ready-dev: .venv/ready requirements-dev.txt
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	# the second opinion of the metrics' tests; its own requirements (TensorFlow 1) are not needed
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps disentanglement-lib==1.5
	touch $@
