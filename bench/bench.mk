# bench/: what measures Ballast from outside, and the demo.

OUTSIDE := $(BUILD)/outside

$(OUTSIDE): $(call obj,bench/outside.c $(COMMON))
	$(CC) $(LDFLAGS) -o $@ $^ -lxxhash

# Two steps: what `deps` installs must be there before make looks at what needs it.
demo: deps
	@$(MAKE) --no-print-directory all $(OUTSIDE)
	@BUILD='$(BUILD)' GUESTS='$(GUESTS)' MEM='$(MEM)' KERNEL='$(KERNEL)' bench/demo/demo.sh
