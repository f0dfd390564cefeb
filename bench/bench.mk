# SPDX-License-Identifier: MIT
# bench/: what measures Ballast from outside, and the demo.

OUTSIDE := $(BUILD)/outside

$(OUTSIDE): $(call obj,bench/outside.c bench/count_guest.c bench/count_totals.c $(COMMON))
	$(CC) $(LDFLAGS) -o $@ $^ -lxxhash

# Two steps: what `deps` installs must be there before make looks at what needs it.
demo: deps
	@$(MAKE) --no-print-directory all $(OUTSIDE)
	@BUILD='$(BUILD)' GUESTS='$(GUESTS)' MEM='$(MEM)' KERNEL='$(KERNEL)' bench/demo/demo.sh

REPORT := $(call obj,bench/report.c)

# Each benchmark is a program on the real objects; the daemon's allocator serves it too.
$(BUILD)/bench-index: $(call obj,bench/index.c $(KSMD)) $(REPORT) $(call obj,$(COMMON))
	$(CC) $(LDFLAGS) -o $@ $^ $(JEMALLOC) -lxxhash -ljansson -lm

.PHONY: bench-index
bench-index: deps
	@$(MAKE) --no-print-directory $(BUILD)/bench-index
	BUILD='$(BUILD)' $(BUILD)/bench-index

$(BUILD)/memhost: $(call obj,bench/memhost.c bench/content.c ctl/guestmem.c ctl/analysis.c) $(BUILD)/libballast-hooks.a
	$(CC) $(LDFLAGS) -o $@ $^ -lxxhash $(LIBS_HOOKS)

# Hosts whose memory an engine shares, and the engines.
PEERS := bench/frames.c bench/peer.c bench/host.c bench/atend.c bench/content.c ctl/guestmem.c ctl/analysis.c $(COMMON)

$(BUILD)/bench-ksm: $(call obj,bench/ksm.c bench/trial.c $(PEERS)) $(REPORT)
	$(CC) $(LDFLAGS) -o $@ $^ -lxxhash -ljansson -lm

# SLOW_PEERS=1 also runs the settings that take minutes: KSM's defaults, ksmtuned's, Ballast's 5%.
.PHONY: bench-ksm
bench-ksm: deps
	@$(MAKE) --no-print-directory all $(BUILD)/memhost $(BUILD)/bench-ksm
	BUILD='$(BUILD)' bench/ksm.sh

$(BUILD)/bench-cow: $(call obj,bench/cow.c $(PEERS)) $(REPORT)
	$(CC) $(LDFLAGS) -o $@ $^ -lxxhash -ljansson -lm

.PHONY: bench-cow
bench-cow: deps
	@$(MAKE) --no-print-directory all $(BUILD)/memhost $(BUILD)/bench-cow
	BUILD='$(BUILD)' $(BUILD)/bench-cow

$(BUILD)/bench-sim: $(call obj,bench/sim.c $(TIERING))
	$(CC) $(LDFLAGS) -o $@ $^ -lm

.PHONY: bench-sim
bench-sim: $(BUILD)/bench-sim
	VMS='$(VMS)' $(BUILD)/bench-sim

$(BUILD)/rival: $(call obj,bench/policy/rival.c)
	$(CC) $(LDFLAGS) -o $@ $^ -ljansson

# About an hour.
.PHONY: bench-policy
bench-policy: deps
	@$(MAKE) --no-print-directory all $(LIVE_BINS) $(BUILD)/rival $(OUTSIDE)
	BUILD='$(BUILD)' bench/policy/policy.sh

$(BUILD)/tierguest: $(call obj,bench/tiers/tierguest.c) $(BUILD)/libballast-hooks.a
	$(CC) $(LDFLAGS) -o $@ $^ -lxxhash $(LIBS_HOOKS)

# About 20 minutes.
.PHONY: bench-tiers
bench-tiers: deps
	@$(MAKE) --no-print-directory all $(BUILD)/tierguest
	BUILD='$(BUILD)' bench/tiers/tiers.sh

# On the test host: about ten minutes.
.PHONY: bench-vmm
bench-vmm: deps
	@$(MAKE) --no-print-directory all $(LIVE_BINS)
	BUILD='$(BUILD)' bench/vmm.sh

# The same: about ten minutes.
.PHONY: bench-balloon
bench-balloon: deps
	@$(MAKE) --no-print-directory all $(LIVE_BINS)
	BUILD='$(BUILD)' bench/balloon.sh

# Built by `make check`, too, so that none falls behind.
BENCH_BINS := $(OUTSIDE) $(BUILD)/memhost $(BUILD)/bench-index $(BUILD)/bench-ksm $(BUILD)/bench-cow $(BUILD)/bench-sim $(BUILD)/rival $(BUILD)/tierguest
