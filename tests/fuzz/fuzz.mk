# SPDX-License-Identifier: MIT
# Fuzz targets: each tests/fuzz/fuzz_NAME.c is a program on the real objects. `make fuzz` links them with
# libFuzzer, `make check` with replay.c (tests/fuzz/README.md).

FUZZ_TARGETS := $(patsubst tests/fuzz/fuzz_%.c,%,$(wildcard tests/fuzz/fuzz_*.c))
FUZZ_LIB     := $(COMMON) $(KSMD) $(METRICS) $(BALLOON) $(TIERING) $(HOOKS) $(DAEMON) $(filter-out ctl/main.c,$(CTL)) $(VMM)

# --- for make check: the build's own compiler and sanitizers --------------------------------------
FUZZ_REPLAY := $(FUZZ_TARGETS:%=$(BUILD)/tests/fuzz/%)

check-built: $(FUZZ_REPLAY)

$(FUZZ_REPLAY): $(BUILD)/tests/fuzz/%: $(call obj,tests/fuzz/fuzz_%.c tests/fuzz/replay.c $(FUZZ_LIB))
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $^ $(LIBS_DAEMON) $(LIBS_VMM) -ldl

# --- make fuzz: clang and libFuzzer, in a folder of its own -----------------------------------------
FUZZ_CC      ?= clang
FUZZ_SECONDS ?= 60
FUZZ         ?=
FUZZ_DIR     := build/fuzz
FUZZ_BINS    := $(FUZZ_TARGETS:%=$(FUZZ_DIR)/%)
# clang checks format strings that gcc does not, and for libraries' macros and structures gcc has no word.
FUZZ_SAN     := -Wno-format-nonliteral -Wno-string-concatenation -Wno-gnu-variable-sized-type-not-at-end -Wno-missing-field-initializers -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
fuzz_obj      = $(patsubst %.c,$(FUZZ_DIR)/obj/%.o,$(1))

.PHONY: fuzz fuzz-built
# Two steps, as for `make check`.
fuzz:
	@scripts/deps.sh fuzz
	@$(MAKE) --no-print-directory $(if $(findstring -j,$(MAKEFLAGS)),,-j$(shell nproc)) fuzz-built
	@FUZZ_DIR='$(FUZZ_DIR)' FUZZ_SECONDS='$(FUZZ_SECONDS)' tests/fuzz/fuzz.sh $(or $(FUZZ),$(FUZZ_TARGETS))

fuzz-built: $(if $(FUZZ),$(FUZZ:%=$(FUZZ_DIR)/%),$(FUZZ_BINS))

$(FUZZ_DIR)/obj/%.o: %.c
	@mkdir -p $(@D)
	$(FUZZ_CC) $(CPPFLAGS) $(filter-out -fsanitize=%,$(CFLAGS)) $(FUZZ_SAN) -MMD -MP -c -o $@ $<

$(FUZZ_BINS): $(FUZZ_DIR)/%: $(call fuzz_obj,tests/fuzz/fuzz_%.c $(FUZZ_LIB))
	@mkdir -p $(@D)
	$(FUZZ_CC) -pthread -fsanitize=fuzzer,address,undefined -o $@ $^ $(filter-out -ljemalloc,$(LIBS_DAEMON)) $(LIBS_VMM) -ldl

-include $(shell find $(FUZZ_DIR)/obj -name '*.d' 2>/dev/null)
