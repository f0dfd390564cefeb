# SPDX-License-Identifier: MIT
# `make check` and its parts. ONLY=pattern picks tests by name (tests/README.md).

# One Criterion program holds all unit tests and links everything but the three main()s.
UNIT      := $(wildcard tests/unit/*.c)
UNIT_SRCS := $(UNIT) $(COMMON) $(KSMD) $(METRICS) $(BALLOON) $(TIERING) $(HOOKS) $(DAEMON) $(filter-out ctl/main.c,$(CTL)) $(VMM)
UNIT_BIN  := $(BUILD)/tests/unit

# Each tests/live/NAME.c is a program of its own on the real agent library; tests/live/test_*.sh run them.
LIVE_BINS := $(patsubst tests/live/%.c,$(BUILD)/tests/%,$(wildcard tests/live/*.c))
LIVE_LIBS := -Wl,--as-needed -lxxhash $(LIBS_HOOKS) -ldl

# Unit tests do not run under SAN=thread, see run.sh; live tests do.
# A sanitized program stops at its first finding, so that a test cannot pass with one.
SAN_ENV := $(if $(SAN),ASAN_OPTIONS=abort_on_error=1:detect_stack_use_after_return=1 \
	   LSAN_OPTIONS=suppressions=$(CURDIR)/tests/lsan.supp:print_suppressions=0 \
	   UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS=halt_on_error=1:suppressions=$(CURDIR)/tests/tsan.supp)

# The model test is always of sanitized programs: in a build of their own where this one is not sanitized.
MODEL_BUILD  := $(if $(SAN),$(BUILD),$(BUILD)/san-address-undefined)
SOAK_SECONDS ?= 1800

.PHONY: check-built check-kvm check-kvm-built model soak

# Two steps, see the Makefile; no "Leaving directory" after the runner's closing line; as many jobs as
# processors unless the user chose.
check: deps
	@$(MAKE) --no-print-directory $(if $(findstring -j,$(MAKEFLAGS)),,-j$(shell nproc)) check-built

check-built: $(BINS) $(UNIT_BIN) $(LIVE_BINS) $(BENCH_BINS) model
	@$(SAN_ENV) BUILD='$(BUILD)' SAN='$(SAN)' ONLY='$(ONLY)' tests/run.sh

# The tests of the test host (tests/testhost/), without the others.
check-kvm: deps
	@$(MAKE) --no-print-directory $(if $(findstring -j,$(MAKEFLAGS)),,-j$(shell nproc)) check-kvm-built

check-kvm-built: $(BINS) $(LIVE_BINS) $(OUTSIDE)
	@$(SAN_ENV) BUILD='$(BUILD)' SAN='$(SAN)' ONLY='$(ONLY)' tests/run.sh --kvm

# Without deps: it needs no root where the packages are there.
check-unit: $(UNIT_BIN)
	@$(SAN_ENV) BUILD='$(BUILD)' SAN='$(SAN)' ONLY='$(ONLY)' tests/run.sh --unit

model:
	@$(MAKE) --no-print-directory SAN=$(or $(SAN),address$(comma)undefined) BUILD=$(MODEL_BUILD) \
		$(MODEL_BUILD)/ballastd $(MODEL_BUILD)/tests/tool_model

soak: $(BUILD)/ballastd $(BUILD)/tests/tool_model
	@$(SAN_ENV) BUILD='$(BUILD)' tests/soak.sh $(SOAK_SECONDS)

lint:
	@scripts/lint.sh

format:
	@git -c safe.directory='$(CURDIR)' ls-files -z --cached --others --exclude-standard -- '*.c' '*.h' | xargs -0r $(CLANG_FORMAT) -i

CLANG_FORMAT ?= clang-format-14

$(UNIT_BIN): $(call obj,$(UNIT_SRCS))
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $^ $(LIBS_DAEMON) $(LIBS_VMM) -lcriterion -ldl

# Objects before the library: live.mk adds some.
$(LIVE_BINS): $(BUILD)/tests/%: $(call obj,tests/live/%.c) $(BUILD)/libballast-hooks.a
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $(filter %.o,$^) $(filter %.a,$^) $(LIVE_LIBS)

-include tests/live/live.mk
