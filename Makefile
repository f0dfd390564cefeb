# Ballast. `make demo` and `make check` are all a user needs; `make help` lists the rest.
#
# Nothing here is recursive: each folder is one component, and the lists below say what it may
# link with (docs/ARCHITECTURE.md, "Layers").

SHELL   := /bin/bash
CC      ?= gcc
BUILD   ?= build$(if $(SAN),/san-$(subst $(comma),-,$(SAN)))
comma   := ,
SAN     ?=

WARN    := -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes \
	   -Wpointer-arith -Wundef -Wformat=2 -Wno-unused-parameter
CPPFLAGS += -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -I.
CFLAGS  += -std=gnu11 -O2 -g -fno-strict-aliasing -fPIC -pthread $(WARN)
LDFLAGS += -pthread
ifneq ($(SAN),)
CFLAGS  += -fsanitize=$(SAN) -fno-omit-frame-pointer -fno-sanitize-recover=undefined
LDFLAGS += -fsanitize=$(SAN)
# Fences are between a device and its guest, whom TSan does not see.
CFLAGS  += $(if $(findstring thread,$(SAN)),-Wno-tsan)
# jemalloc replaces the allocator that the sanitizers instrument, so it stays out of their builds.
JEMALLOC :=
else
JEMALLOC := -ljemalloc
endif

COMMON  := $(wildcard common/*.c)
KSMD    := $(wildcard ksmd/*.c)
METRICS := $(wildcard metrics/*.c)
BALLOON := $(wildcard balloon/*.c)
TIERING := $(wildcard tiering/*.c)
# preload.c is the QEMU shim; the rest of the folder is the agent library that any VMM links.
HOOKS   := $(filter-out hypervisor-hooks/preload.c,$(wildcard hypervisor-hooks/*.c))
# main.c and the core are apart so that tests link the daemon's parts without its main().
DAEMON  := $(filter-out daemon/main.c,$(wildcard daemon/*.c))
CTL     := $(wildcard ctl/*.c)
VMM     := $(filter-out vmm/main.c,$(wildcard vmm/*.c))

obj = $(patsubst %.c,$(BUILD)/obj/%.o,$(1))

LIBS_DAEMON := $(JEMALLOC) -lxxhash -lurcu -lsystemd -linih -ljansson -lmicrohttpd -lm
LIBS_CTL    := -lxxhash -ljansson
# What who links the agent needs.
LIBS_HOOKS  := -llz4
LIBS_VMM    := -lxxhash -lsystemd -ljansson -luring -lseccomp $(LIBS_HOOKS)

BINS := $(BUILD)/ballastd $(BUILD)/ballastctl $(BUILD)/ballast-vmm $(BUILD)/ballast-run $(BUILD)/libballast-preload.so

# `make check` and `make demo` first install what is missing, then build: two steps, because make
# would otherwise look for headers before apt has brought them.
.PHONY: all help deps demo check check-kvm check-unit lint format clean
all: $(BINS)

help:
	@echo 'make demo     install what is missing, build, run 4 stock QEMU guests, show the memory saved'
	@echo '              (GUESTS=4 MEM=256 KERNEL=path/to/vmlinuz)'
	@echo 'make check    install what is missing, build, run all tests'
	@echo 'make check-kvm  of these, those on the test host, which has hardware-style KVM (tests/testhost/README.md)'
	@echo 'make all      build only    make lint      clang-format and cppcheck'
	@echo 'make fuzz     fuzz the parsers (FUZZ_SECONDS=60 for each, FUZZ=target; tests/fuzz/README.md)'
	@echo 'make SAN=address,undefined  or SAN=thread: build with sanitizers, in a folder of its own'
	@echo 'make soak     the model test with new seeds for SOAK_SECONDS=1800'
	@echo 'make clean    remove build/'

deps:
	@scripts/deps.sh

$(BUILD)/obj/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

$(BUILD)/libballast-hooks.a: $(call obj,$(HOOKS) $(COMMON))
	@rm -f $@
	ar rcs $@ $^

# The shim lives in somebody else's process: it exports only what it interposes.
$(BUILD)/libballast-preload.so: $(call obj,hypervisor-hooks/preload.c) $(BUILD)/libballast-hooks.a
	$(CC) $(LDFLAGS) -shared -Wl,--exclude-libs,ALL -Wl,-z,defs -o $@ $^ $(LIBS_HOOKS) -ldl

$(BUILD)/ballastd: $(call obj,daemon/main.c $(DAEMON) $(KSMD) $(METRICS) $(BALLOON) $(TIERING)) $(BUILD)/libballast-hooks.a
	$(CC) $(LDFLAGS) -o $@ $^ $(LIBS_DAEMON)

$(BUILD)/ballastctl: $(call obj,$(CTL) $(COMMON))
	$(CC) $(LDFLAGS) -o $@ $^ $(LIBS_CTL)

$(BUILD)/ballast-vmm: $(call obj,vmm/main.c $(VMM)) $(BUILD)/libballast-hooks.a
	$(CC) $(LDFLAGS) -o $@ $^ $(LIBS_VMM)

$(BUILD)/ballast-run: hypervisor-hooks/ballast-run
	@mkdir -p $(@D)
	install -m 755 $< $@

-include bench/bench.mk
-include tests/tests.mk
-include tests/fuzz/fuzz.mk

clean:
	rm -rf build

-include $(shell find $(BUILD)/obj -name '*.d' 2>/dev/null)
