# flannel-ebpf: everything a checkout needs. Every target sets up what is missing first; run as root.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV   := .venv
BIN    := $(VENV)/bin
PYTHON := $(BIN)/python
BPF    := $(wildcard bpf/*.c bpf/*.h)

# Files of tests that run at the same time: they mostly wait, for the kernel, for etcd, for time to pass.
JOBS ?= $(shell expr 2 \* $$(nproc))

# tests/hosts boots hosts with a systemd of their own, tests/interop needs a flanneld: they have targets of their own.
TESTS ?= tests/unit tests/bpf tests/netns

# Frames that the fuzz tests mutate: a few in `make test`, many in `make fuzz`.
FUZZ_FRAMES ?= 1000000
# Random firewall rulesets for which the proof of --fastpath=auto is compared with the kernel: 20 in `make test`.
FUZZ_RULESETS ?= 2000

# Tests start hundreds of daemons, and compiling the package is a third of a start: Python keeps what it compiled.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup packages objects demo test interop kube check fuzz kernels bench wheel deb image install \
	packages-test metrics-test docker-test clean

help: ## show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: packages $(VENV)/stamp objects ## install packages, make the Python environment, compile the BPF programs

packages:
	@tools/setup_packages.sh

# The environment sees Debian's packages, because the BPF library binding (python3-bpfcc) is only there.
# It is built by Debian's own Python for the same reason.
$(VENV)/stamp: pyproject.toml tools/pins.txt | packages
	@echo "setup: making the Python environment in $(VENV), up to a minute"
	@test -x $(PYTHON) || /usr/bin/python3 -m venv --system-site-packages $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --root-user-action=ignore --use-pep517 \
		--constraint tools/pins.txt --editable '.[test,check,package]' > $(VENV)/log 2>&1 || \
		{ tail -n 3 $(VENV)/log; echo "setup: the Python packages cannot be fetched: is there a network?"; exit 1; }
	@touch $@

objects: packages
	@$(MAKE) --no-print-directory --quiet -C bpf

demo: setup ## build a two-node cluster here and show pods talking through the kernel and through BPF
	@$(PYTHON) tools/demo.py

test: setup ## run all tests: unit, bpf (programs run by the kernel), netns (real traffic in the lab)
	@$(PYTHON) -m pytest $(TESTS) -m "not alone" -n $(JOBS) --dist loadgroup --no-loadscope-reorder $(PYTEST_ARGS)
	@$(PYTHON) -m pytest $(TESTS) -m alone -q $(PYTEST_ARGS) || test $$? = 5 # no such test is fine

interop: setup ## build a real flanneld and run the tests of clusters that have both; needs Go
	@$(PYTHON) -m pytest tests/interop $(PYTEST_ARGS)

kube: setup ## real API server, kube-proxy and flanneld: services, mixed clusters, manifests; builds them once
	@tools/flannel.sh > /dev/null && folder=$$(tools/kube/build.sh) && $(PYTHON) -m pytest tests/kube tests/netns/kube \
		--kube-apiserver=$$folder/kube-apiserver -n $(JOBS) --dist loadgroup --no-loadscope-reorder $(PYTEST_ARGS)

check: setup ## formatting, lint, types, import rules, C style
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	clang-format --dry-run --Werror $(BPF)

fuzz: setup ## feed FUZZ_FRAMES mutated frames to the BPF programs, FUZZ_RULESETS rulesets to the proof
	@$(PYTHON) -m pytest tests -m fuzz --fuzz-frames=$(FUZZ_FRAMES) --fuzz-rulesets=$(FUZZ_RULESETS) \
		--timeout=7200 $(PYTEST_ARGS)

kernels: setup ## boot Debian's kernels from 5.10 to the newest and run the tests there; downloads them
	@$(PYTHON) tools/kernel_matrix.py $(KERNELS)

bench: setup ## measure every mode against every workload, into bench/
	@mkdir -p bench
	@$(PYTHON) tools/perf_compare.py --json bench/results.json --html bench/results.html $(BENCH_ARGS)

wheel: setup ## build a wheel with the BPF programs in it, into dist/
	@$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	@ls dist/*.whl

deb: setup ## build dist/flannel-ebpf_*.deb for Debian 12 and 13
	@tools/packages/deb.sh

# DESTDIR: staging folder; PREFIX: default /usr/local
install: setup ## install for this host's Python, with unit, man pages and completion
	@tools/packages/install.sh
	@tools/packages/install_unit.sh

image: deb ## build dist/flannel-ebpf-image.tar for docker load, without a registry
	@tools/packages/image.sh

docker-test: setup ## Docker Engine on two booted hosts, the CNI plugins on two nodes
	@$(PYTHON) -m pytest tests/hosts/test_docker.py tests/hosts/test_image.py tests/hosts/test_cni.py $(PYTEST_ARGS)

packages-test: setup ## install, upgrade and purge the .deb on booted Debian 12 and 13, follow docs/install.md
	@$(PYTHON) -m pytest tests/hosts/test_packages.py tests/hosts/test_install_docs.py $(PYTEST_ARGS)

metrics-test: setup ## scrape two nodes with a real Prometheus and compare with iperf3; check the alerts
	@$(PYTHON) -m pytest tests/hosts/test_prometheus.py $(PYTEST_ARGS)

clean: ## remove what the targets above made in this folder
	@$(MAKE) --no-print-directory --quiet -C bpf clean 2> /dev/null
	@rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@find flannel_ebpf tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
