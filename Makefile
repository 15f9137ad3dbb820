# Everything a checkout can do. Each target works from nothing: it makes the virtual environment first if there is none.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# `make VENV=/elsewhere/.venv test` uses another checkout's environment as it is, with this checkout's sources.
VENV := .venv
export PYTHONPATH := $(CURDIR)
BIN := $(VENV)/bin
RUN := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
FUZZ := $(VENV)/.installed-fuzz
# The first interpreter that is new enough; `make PYTHON=/path/to/python3` overrides it.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v $$p; break; }; done)
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-input --quiet
JOBS ?= 2
MINUTES ?= 30
SECONDS ?= 60
PACKETS ?= 10000000
SEED ?= 1
TARGET ?= all

.PHONY: help
help: ## say what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

.PHONY: venv
venv: $(DEV) ## make .venv with every pinned package, what tests and linters need included

ifeq ($(VENV),.venv)
# What runs Nyx: pinned packages, and this checkout's nyxd and nyxctl. Wheels only, so no compiler is needed.
$(RUN): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Nyx needs Python 3.11 or newer with the venv module (Debian: python3-venv)" >&2; exit 1; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(PIP) --only-binary :all: --require-hashes -r requirements.lock
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

# What checks Nyx. One package of it is built from source (Debian: gcc, libc6-dev, python3-dev).
$(DEV): $(RUN) requirements-dev.lock
	$(PIP) --no-build-isolation --require-hashes -r requirements-dev.lock
	@touch $@

$(FUZZ): $(DEV) requirements-fuzz.lock
	$(PIP) --only-binary :all: --require-hashes -r requirements-fuzz.lock
	@touch $@
endif

.PHONY: test
test: $(DEV) ## run every test a plain machine can run, then the library's again with kernels as plain Python
	$(BIN)/python -m pytest -n $(JOBS)
	NYX_KERNELS=plain $(BIN)/python -m pytest -n $(JOBS) -m "not e2e and not slow" tests/nyx

.PHONY: lint lint-style lint-types lint-imports lint-layout
lint: lint-style lint-types lint-imports lint-layout ## style, formatting, types, who may import whom, layout

lint-style: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lint-types: $(DEV)
	$(BIN)/mypy

lint-imports: $(DEV)
	$(BIN)/lint-imports --no-logo

lint-layout: $(DEV)
	$(BIN)/python -m pytest -q tests/test_layout.py

.PHONY: api
api: $(DEV) ## make the code and the page of the gRPC API anew from control/api/nyx_v1.proto
	$(BIN)/python -m control.api.generate

.PHONY: format
format: $(DEV) ## format and fix what can be fixed without thought
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: demo
demo: $(RUN) ## a local network of real nodes, one fetch through it, and it stays up
	$(BIN)/nyxctl testnet demo

.PHONY: demo-stop
demo-stop: $(RUN) ## stop what `make demo` started
	$(BIN)/nyxctl testnet down

MAN ?= build/man

.PHONY: man
man: $(RUN) ## manual pages of nyxctl, each command and nyx.toml, into MAN=build/man
	$(BIN)/nyxctl man --dir $(MAN)

# Where `make install` puts Nyx; DESTDIR is a folder in whose tree a package is built.
PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
DESTDIR ?=
# A folder of packages that are there already (some environment's site-packages), for a machine without a network: none is fetched.
PACKAGES ?=
# Not empty: with what telemetry.otlp needs, OpenTelemetry's SDK.
OTEL ?=
TO := $(DESTDIR)$(PREFIX)
CONF := $(DESTDIR)$(SYSCONFDIR)/nyx
ENVIRONMENT := $(TO)/lib/nyx
INTO := $(ENVIRONMENT)/bin/python3 -m pip install --disable-pip-version-check --no-input --quiet --root-user-action ignore
RENDER := sed -e 's|@PREFIX@|$(PREFIX)|g' -e 's|@SYSCONFDIR@|$(SYSCONFDIR)|g'
INSTALLED := bin/nyxd bin/nyxctl lib/systemd/system/nyx.service lib/systemd/user/nyx.service lib/sysusers.d/nyx.conf \
	lib/tmpfiles.d/nyx.conf lib/sysctl.d/50-nyx.conf share/man/man8/nyxd.8 \
	share/bash-completion/completions/nyxctl share/zsh/site-functions/_nyxctl share/fish/vendor_completions.d/nyxctl.fish
# The program that writes its own pages and scripts, before its place in the staging folder is its own.
WRITTEN_BY := $(ENVIRONMENT)/bin/python3 -I -c 'import sys; sys.argv[0] = "nyxctl"; from control.cli import main; main()'
# Whether this is the machine that shall run it: then systemd is told.
HERE := $(if $(DESTDIR),false,test -d /run/systemd/system -a "$$(id -u)" = 0)

.PHONY: install uninstall
install: ## install for the whole machine, with systemd units: PREFIX=/usr/local SYSCONFDIR=/etc DESTDIR=
	@test -n "$(PYTHON)" || { echo "Nyx needs Python 3.11 or newer with the venv module (Debian: python3-venv)" >&2; exit 1; }
	umask 022; test -x $(ENVIRONMENT)/bin/python3 || "$(PYTHON)" -m venv $(ENVIRONMENT)
	umask 022; site=$$($(ENVIRONMENT)/bin/python3 -I -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	if test -n "$(PACKAGES)"; then echo "$(abspath $(PACKAGES))" >"$$site/packages.pth"; \
	else rm -f "$$site/packages.pth"; $(INTO) --only-binary :all: --require-hashes -r requirements.lock; fi
	@if test -n "$(OTEL)"; then umask 022; $(INTO) --only-binary :all: --require-hashes -r requirements-otel.lock; fi
	umask 022; $(INTO) --no-deps --no-build-isolation --force-reinstall .
	@# Commands that name the staging folder in their first line; nyxd and nyxctl find the environment beside them.
	find $(ENVIRONMENT)/bin -type f -delete
	umask 022; mkdir -p $(addprefix $(TO)/,$(sort $(dir $(INSTALLED)))) $(CONF) $(TO)/share/doc/nyx
	install -m 755 systemd/bin/nyxd systemd/bin/nyxctl $(TO)/bin
	$(RENDER) systemd/nyx.service | install -m 644 /dev/stdin $(TO)/lib/systemd/system/nyx.service
	$(RENDER) systemd/user/nyx.service | install -m 644 /dev/stdin $(TO)/lib/systemd/user/nyx.service
	install -m 644 systemd/nyx.sysusers $(TO)/lib/sysusers.d/nyx.conf
	install -m 644 systemd/nyx.tmpfiles $(TO)/lib/tmpfiles.d/nyx.conf
	install -m 644 systemd/50-nyx.conf $(TO)/lib/sysctl.d/50-nyx.conf
	install -m 644 README.md docs/*.md systemd/nyx.toml $(TO)/share/doc/nyx
	install -m 644 systemd/man/nyxd.8 $(TO)/share/man/man8/nyxd.8
	umask 022; $(WRITTEN_BY) man --dir $(TO)/share/man >/dev/null
	$(WRITTEN_BY) completion bash | install -m 644 /dev/stdin $(TO)/share/bash-completion/completions/nyxctl
	$(WRITTEN_BY) completion zsh | install -m 644 /dev/stdin $(TO)/share/zsh/site-functions/_nyxctl
	$(WRITTEN_BY) completion fish | install -m 644 /dev/stdin $(TO)/share/fish/vendor_completions.d/nyxctl.fish
	test -e $(CONF)/nyx.toml || install -m 644 systemd/nyx.toml $(CONF)/nyx.toml
	@if $(HERE); then systemd-sysusers; systemd-tmpfiles --create $(TO)/lib/tmpfiles.d/nyx.conf; systemctl daemon-reload; fi
	@echo "installed in $(TO); configuration: $(CONF)/nyx.toml. A node that runs takes the new code over by: nyxctl upgrade"

uninstall: ## remove what `make install` put there; configuration and state stay
	@if $(HERE); then systemctl disable --now --quiet nyx.service || true; fi
	rm -rf $(ENVIRONMENT) $(TO)/share/doc/nyx
	rm -f $(addprefix $(TO)/,$(INSTALLED)) $(TO)/share/man/man1/nyxctl.1 $(TO)/share/man/man1/nyxctl-*.1 $(TO)/share/man/man5/nyx.toml.5
	@if $(HERE); then systemctl daemon-reload; fi
	@echo "removed. Left: $(CONF), and /var/lib/nyx (keys, guards), /var/cache/nyx and the user nyx, where the node has run"

.PHONY: bench
bench: $(DEV) ## measure: cryptography, streams in memory, UDP, relays under load, nyxctl, one stream through 1, 2, 3 and 5 hops, Tor and ssh beside it, and kills
	$(BIN)/python -m bench.crypto
	$(BIN)/python -m bench.streams
	$(BIN)/python -m bench.udp
	$(BIN)/python -m bench.throughput
	$(BIN)/python -m bench.cli
	$(BIN)/python -m bench.stream
	$(BIN)/python -m bench.compare_tor
	$(BIN)/python -m bench.recovery
	$(BIN)/python -m bench.kills
	$(BIN)/python -m bench.faults
	$(BIN)/python -m bench.reload
	$(BIN)/python -m bench.subscribers

.PHONY: soak
soak: $(DEV) ## half an hour of kills, restarts, upgrades and traffic: what grows? (make soak MINUTES=120)
	$(BIN)/python -m bench.soak --minutes $(MINUTES)

.PHONY: hostile
hostile: $(DEV) ## ten million hostile packets over all stages of a running network (make hostile PACKETS=10000000 SEED=1)
	$(BIN)/python -m bench.hostile --packets $(PACKETS) --seed $(SEED)

.PHONY: attacks
attacks: $(DEV) ## every defence attacked in full counts: a table of figures, bounds and verdicts
	$(BIN)/python -m bench.attacks

.PHONY: fuzz
fuzz: $(FUZZ) ## every decoder and state machine against inputs led by coverage (make fuzz SECONDS=60 TARGET=all)
	$(BIN)/python -m tests.fuzz.run $(TARGET) --seconds $(SECONDS)

COMPILE := env -u PIP_FIND_LINKS -u PIP_EXTRA_INDEX_URL PIP_CONFIG_FILE=/dev/null CUSTOM_COMPILE_COMMAND="make lock" \
	$(BIN)/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras --no-build-isolation \
	--no-emit-index-url --no-emit-trusted-host --no-emit-find-links

.PHONY: lock
lock: ## resolve pyproject.toml again and pin every package with its hashes
	test -x $(BIN)/pip-compile || $(MAKE) venv
	$(COMPILE) --extra build --output-file requirements.lock pyproject.toml
	$(COMPILE) --extra otel --constraint requirements.lock --output-file requirements-otel.lock pyproject.toml
	$(COMPILE) --extra build --extra dev --extra otel --constraint requirements.lock --constraint requirements-otel.lock --output-file requirements-dev.lock pyproject.toml
	$(COMPILE) --extra fuzz --constraint requirements.lock --output-file requirements-fuzz.lock pyproject.toml

.PHONY: clean
clean: ## remove what the tools left behind; `rm -r .venv` starts from nothing
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage .fuzz
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
