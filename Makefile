# SPDX-License-Identifier: GPL-3.0-or-later
#
# One entry point for people and for CI. `make` alone lists what there is.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# The steps of a target build on each other; they use both CPUs themselves where that helps.
.NOTPARALLEL:

VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' agent/src/zernel/__init__.py)
VENV    := .venv
BIN     := $(CURDIR)/$(VENV)/bin
PYTHON  ?= /usr/bin/python3
DEB     := roles/agent/files/zernel-agent_$(VERSION)_all.deb
TARBALL := dist/zernel-fleet-$(VERSION).tar.gz
STAGE   := .build/deb/zernel-agent-$(VERSION)
TESTBED := PYTHONPATH=tests $(PYTHON) -m testbed

# What the package is made of: a change in any of these rebuilds it.
AGENT_SOURCES := $(shell find agent bpf -type f -not -name '*.o' -not -name '*.d' -not -path '*/__pycache__/*' -not -path '*.egg-info/*')

export PATH := $(BIN):$(PATH)
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: machine
machine: ## install the Debian packages that the other targets need (root)
	@tests/bin/setup-machine

$(VENV)/.stamp: tests/requirements.txt agent/pyproject.toml $(wildcard agent/bin/*)
	@echo "Creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -qq --disable-pip-version-check -r tests/requirements.txt -e agent
	@mkdir -p .build/ansible_collections/zernel
	@ln -sfn ../../.. .build/ansible_collections/zernel/fleet
	@touch $@

.PHONY: venv
venv: $(VENV)/.stamp ## create .venv with zernel, Ansible and the checkers; needs no root

$(DEB): $(AGENT_SOURCES)
	@echo "Building zernel-agent $(VERSION)"
	@rm -rf .build/deb && mkdir -p .build/deb
	@cp -r agent $(STAGE) && cp -r bpf $(STAGE)/bpf
	@rm -f $(STAGE)/bpf/*.o && find $(STAGE) -name __pycache__ -prune -exec rm -rf {} + && rm -rf $(STAGE)/src/*.egg-info
	@cd $(STAGE) && env -u PYTHONPATH PATH=/usr/sbin:/usr/bin:/sbin:/bin dpkg-buildpackage -us -uc -b >../build.log 2>&1 \
	  || { tail -n 40 ../build.log >&2; echo "ERROR: zernel-agent: the package did not build; log: .build/deb/build.log" >&2; exit 1; }
	@lintian --allow-root --fail-on error --tag-display-limit 0 .build/deb/zernel-agent_$(VERSION)_*.changes
	@mkdir -p $(@D) && rm -f $(@D)/zernel-agent_*.deb
	@cp .build/deb/zernel-agent_$(VERSION)_all.deb $@

$(TARBALL): $(DEB) $(VENV)/.stamp $(shell find galaxy.yml README.md CHANGELOG.md LICENSES changelogs meta plugins roles playbooks -type f -not -path '*/__pycache__/*')
	@mkdir -p dist
	@ansible-galaxy collection build --force --output-path dist . >/dev/null

.PHONY: build
build: $(DEB) $(TARBALL) bpf ## build the BPF objects, the agent's package and the collection
	@ls -l $(DEB) $(TARBALL) | awk '{ printf "%8.1f kB  %s\n", $$5 / 1000, $$9 }'

.PHONY: bpf
bpf: ## build the BPF objects in place (bpf/*.bpf.o)
	@$(MAKE) --no-print-directory -C bpf

.PHONY: demo
demo: ## boot a throwaway Debian 13 guest and provision it; leaves it running (root)
	@began=$$(date +%s); \
	$(MAKE) --no-print-directory machine venv $(DEB); \
	PYTHONPATH=tests $(BIN)/python -m demo --since $$began

.PHONY: demo-ssh
demo-ssh: ## log in to the demo's guest
	@$(TESTBED) ssh

.PHONY: demo-down
demo-down: ## stop the demo's guest and remove it
	@$(TESTBED) down

.PHONY: lint
lint: venv ## run every static check
	ruff check . && ruff format --check .
	mypy agent/src tests/testbed tests/demo tests/benchmarks
	yamllint --strict .
	ansible-lint --offline --profile production
	clang-format --dry-run --Werror bpf/*.c bpf/include/*.h
	shellcheck .ci/run tests/bin/*

.PHONY: test
test: machine venv build bpf ## run every test: unit, probes on this machine, guests, molecule (root)
	@tests/bin/run-tests

.PHONY: bench
bench: venv build bpf ## measure the figures and print them as a table (root)
	@PYTHONPATH=tests $(BIN)/python -m benchmarks $(ONLY)

.PHONY: clean
clean: ## remove what was built; the cache in ~/.cache/zernel stays
	@rm -rf .build dist .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .ansible
	@rm -f bpf/*.o roles/agent/files/zernel-agent_*.deb
