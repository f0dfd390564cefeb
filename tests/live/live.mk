# SPDX-License-Identifier: MIT
# What the live test programs need beyond the rule of tests/tests.mk, which includes this.

FLAT_GUEST := $(BUILD)/tests/flat_guest.bin

# Nothing of CFLAGS: the guest has no libc, no sanitizer runtime and no SSE state.
$(FLAT_GUEST): tests/live/flat/guest.c tests/live/flat/guest.ld tests/live/flat/abi.h common/types.h
	@mkdir -p $(@D)
	$(CC) -std=gnu11 -O2 $(WARN) -I. -DFLAT_GUEST -ffreestanding -fno-pic -fno-stack-protector \
		-fno-asynchronous-unwind-tables -fno-tree-loop-distribute-patterns -mno-sse -mno-red-zone \
		-fcf-protection=none -nostdlib -static -Wl,--build-id=none -Wl,--oformat=binary \
		-Wl,-T,tests/live/flat/guest.ld -o $@ $<

# The VMM carries the guest's code in itself (.incbin), and the guest's loop a second time, hosted.
$(call obj,tests/live/flat/kvm.c): CPPFLAGS += -DFLAT_GUEST_BIN='"$(FLAT_GUEST)"'
$(call obj,tests/live/flat/kvm.c): $(FLAT_GUEST)
$(BUILD)/tests/flat_vmm: $(call obj,$(wildcard tests/live/flat/*.c))

# Guest memory is shared between a guest and its VMM without locks, and the agent maps over it under accesses: what
# TSan takes for races is what these tests are there to provoke. It still watches everything else.
$(call obj,tests/live/flat/guest.c tests/live/flat/device.c tests/live/flat/memory.c): CFLAGS += -fno-sanitize=thread

# tool_faults: each system call of the agent goes through a wrapper (tests/live/faults/inject.c).
FAULTS_WRAP := ioctl syscall mmap64 pread64 pwrite64 fdatasync fstat64 fstatfs64 sendmsg recvmsg poll open64 fopen64 readlink read write \
	fcntl64 lseek64 access socket connect eventfd pthread_create malloc calloc aligned_alloc
$(BUILD)/tests/tool_faults: $(call obj,$(wildcard tests/live/faults/*.c))
$(BUILD)/tests/tool_faults: LDFLAGS += $(addprefix -Wl$(comma)--wrap=,$(FAULTS_WRAP))

# The model test speaks to the daemon's control socket itself. Its VMs' memory is no more TSan's business than the
# flat guest's.
$(BUILD)/tests/tool_model: $(call obj,$(wildcard tests/live/model/*.c))
$(BUILD)/tests/tool_model: LIVE_LIBS += -ljansson
$(call obj,tests/live/model/ops.c tests/live/model/content.c): CFLAGS += -fno-sanitize=thread

# tool_huge writes its memory all the while, as a guest does.
$(call obj,tests/live/tool_huge.c): CFLAGS += -fno-sanitize=thread

# Nor are the pages that tool_diskshare's disk fills and its vCPU reads, under a lock, while the agent moves them.
$(call obj,tests/live/tool_diskshare.c tests/live/tool_clone.c): CFLAGS += -fno-sanitize=thread

# The balloon's client and controller without a daemon.
$(BUILD)/tests/tool_balloon: $(call obj,$(BALLOON))
$(BUILD)/tests/tool_balloon: LIVE_LIBS += -lsystemd -ljansson -lm

# The flat guest of test_70: code for ballast-vmm --flat. Nothing of CFLAGS, as above.
VMM_FLAT := $(BUILD)/tests/vmm_flat.bin
$(VMM_FLAT): tests/live/vmm/guest.c tests/live/vmm/guest.ld vmm/layout.h vmm/pm.h
	@mkdir -p $(@D)
	$(CC) -std=gnu11 -O2 $(WARN) -I. -ffreestanding -fno-pic -fno-stack-protector -fno-asynchronous-unwind-tables \
		-mno-sse -mno-red-zone -fcf-protection=none -nostdlib -static -Wl,--build-id=none -Wl,--oformat=binary \
		-Wl,-T,tests/live/vmm/guest.ld -o $@ $<
check-built: $(VMM_FLAT)
