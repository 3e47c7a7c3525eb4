# The verbs a person types. `make help` lists them.
export PATH := $(HOME)/.cargo/bin:$(PATH)
IMAGE ?= disk.img
SIZE ?= 1000M
MOUNT ?= tmp
SECONDS_OF_SOAK ?= 3600
S := tests/scripts

.DEFAULT_GOAL := build
.PHONY: build disk run um vm check test soak clean help

build: ## build mkfs, kfsd and kfsctl into target/release
	@$S/install-deps.sh build
	cargo build --release --workspace --bins

disk: build ## make disk.img (IMAGE=, SIZE=1000M)
	@$S/disk.sh $(IMAGE) $(SIZE)

run: disk ## mount disk.img on tmp/ in the background (IMAGE=, MOUNT=)
	@$S/run.sh $(IMAGE) $(MOUNT)

um: ## unmount tmp/ and wait until disk.img is clean
	@$S/um.sh $(IMAGE) $(MOUNT)

vm: build ## boot a guest with disk.img on /mnt: a shell, or a tour without a terminal (SCRIPT=, PROGRAMS=1, SHARED_DIR=)
	@$S/vm.sh $(IMAGE) $(SIZE)

check: ## formatting and lints
	@$S/install-deps.sh build
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

test: ## everything: check, cargo test, guests
	@$S/test.sh

soak: ## the long tests, resumable (SECONDS_OF_SOAK=3600, PARTS="fsx fuzz ..." for some of them)
	@$S/soak.sh $(SECONDS_OF_SOAK) $(PARTS)

clean: ## remove what was built and fetched (disk.img stays)
	cargo clean
	rm -rf build

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 8
