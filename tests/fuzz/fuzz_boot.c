/* SPDX-License-Identifier: MIT */
/*
 * Kernel images: any bytes as the file of --kernel, with an initrd and a command line whose sizes
 * are the input's, too. What must hold: an entry point in RAM, or one line that says why not; and
 * nothing is written where the loader has no business.
 */
#include <errno.h>
#include <sys/mman.h>
#include "tests/fuzz/fuzz.h"
#include "vmm/boot.h"
#include "vmm/layout.h"

#define RAM	  MIB(4)
#define GUARD	  0xa5
#define INPUT_MAX 65536

static struct guest_memory mem;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	MUST(memory_init(&mem, RAM, 0) == 0);
	/* Where the tables are, which others write. */
	memset(memory_at(&mem, LAYOUT_ACPI, LAYOUT_ACPI_BYTES), GUARD, LAYOUT_ACPI_BYTES);
	return 0;
}

static int file_of(const void *data, size_t bytes)
{
	int fd = memfd_create("fuzz", MFD_CLOEXEC);

	MUST(fd >= 0);
	MUST(bytes == 0 || write(fd, data, bytes) == (ssize_t)bytes);
	return fd;
}

static void check_entry(const struct boot_entry *entry)
{
	struct kvm_sregs sregs = { 0 };
	struct kvm_regs regs;

	MUST(entry->rip >= LAYOUT_KERNEL);
	MUST(memory_at(&mem, entry->rip, 1));
	boot_registers(&mem, entry, &regs, &sregs);
	MUST(regs.rip == entry->rip && sregs.cs.present);
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
	struct input in = { data, data + size };
	char error[BOOT_ERROR_MAX] = "", cmdline[300] = "";
	struct boot_entry entry;
	struct boot_source src = { .initrd_fd = -1, .cmdline = cmdline };
	int r, fd = lowest_free_fd();
	u8 choice = input_u8(&in);

	if (size > INPUT_MAX)
		return 0;
	memset(cmdline, 'x', choice & 0x80 ? 299 : 10);
	if (choice & 1) {
		src.initrd_fd = memfd_create("initrd", MFD_CLOEXEC);
		MUST(ftruncate(src.initrd_fd, (off_t)(choice & 0x7e) << 14) == 0);
	}
	src.kernel_fd = file_of(in.at, input_left(&in));
	r = choice & 0x40 && choice & 0x20 ? boot_load_flat(&mem, src.kernel_fd, &entry, error)
					   : boot_load(&mem, &src, &entry, error);
	if (r == 0)
		check_entry(&entry);
	else
		MUST(r < 0 && error[0] && !strchr(error, '\n'));
	for (u64 i = 0; i < LAYOUT_ACPI_BYTES; i += 61)
		MUST(*(u8 *)memory_at(&mem, LAYOUT_ACPI + i, 1) == GUARD);
	close(src.kernel_fd);
	if (src.initrd_fd >= 0)
		close(src.initrd_fd);
	MUST(lowest_free_fd() == fd);
	return 0;
}
