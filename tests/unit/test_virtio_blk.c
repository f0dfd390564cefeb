/* SPDX-License-Identifier: MIT */
/* Disk images and the block device on them, driven as a guest drives it. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <linux/virtio_blk.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "tests/unit/vmm_driver.h"
#include "vmm/virtio_blk.h"

#define DISK_BYTES MIB(8)
#define CLUSTER	   4096
#define HDR	   DRIVER_DATA
#define STATUS	   (DRIVER_DATA + 64)
#define BUF	   (DRIVER_DATA + 0x10000)
#define ALL	   UINT64_MAX

static struct driver v;
static char dir[64], base[96], overlay[96], error[BLK_IMAGE_ERROR_MAX];

static u8 base_byte(u64 offset)
{
	return (u8)(offset / BLK_SECTOR * 7 + offset % 251);
}

static void make_base(u64 bytes)
{
	FILE *f = fopen(base, "w");

	cr_assert(f);
	for (u64 i = 0; i < bytes; i++)
		putc(base_byte(i), f);
	cr_assert_eq(fclose(f), 0);
}

static void setup(void)
{
	strcpy(dir, "/var/tmp/ballast-unit-XXXXXX");
	cr_assert(mkdtemp(dir));
	snprintf(base, sizeof(base), "%s/base", dir);
	snprintf(overlay, sizeof(overlay), "%s/overlay", dir);
	make_base(DISK_BYTES);
	driver_machine(&v, 0);
}

static void teardown(void)
{
	driver_end(&v);
	unlink(base);
	unlink(overlay);
	rmdir(dir);
}

TestSuite(virtio_blk, .init = setup, .fini = teardown, .timeout = 60);

static struct blk_image *open_image(const struct blk_image_config *cfg)
{
	struct blk_image *img;

	error[0] = '\0';
	cr_assert_eq(blk_image_open(cfg, &img, error), 0, "%s", error);
	return img;
}

static void device(const struct blk_image_config *cfg)
{
	struct virtio_device *d;

	cr_assert_eq(virtio_blk_new(&v.vm, open_image(cfg), "serial-1", &d), 0);
	driver_attach(&v, d);
	driver_up(&v, ALL);
}

static void plain(const char *over, bool readonly)
{
	device(&(struct blk_image_config){ .path = base, .overlay = over, .readonly = readonly });
}

/* The machine ends as at power-off; a new one is there. */
static void power_cycle(void)
{
	driver_end(&v);
	driver_machine(&v, 0);
}

static u8 request(u32 type, u64 sector, u64 gpa, u32 bytes, bool writable)
{
	struct virtio_blk_outhdr hdr = { .type = type, .sector = sector };
	const struct driver_buf bufs[] = { { HDR, sizeof(hdr), false },
					   { gpa, bytes, writable },
					   { STATUS, 1, true } };
	const struct driver_buf none[] = { bufs[0], bufs[2] };

	memcpy(driver_at(&v, HDR), &hdr, sizeof(hdr));
	*(u8 *)driver_at(&v, STATUS) = 0xff;
	driver_request(&v, 0, bytes ? bufs : none, bytes ? 3 : 2);
	return *(u8 *)driver_at(&v, STATUS);
}

static u8 write_fill(u64 sector, u32 bytes, u8 fill)
{
	memset(driver_at(&v, BUF), fill, bytes);
	return request(VIRTIO_BLK_T_OUT, sector, BUF, bytes, false);
}

/* What is expected of the whole disk: base_byte() or what the tests wrote. */
static u8 model[DISK_BYTES];

static void model_base(void)
{
	for (u64 i = 0; i < DISK_BYTES; i++)
		model[i] = base_byte(i);
}

/* Not an assertion a byte: each is a message to the runner. */
static void expect_bytes(const u8 *got, const u8 *want, u64 bytes, u64 at)
{
	for (u64 i = 0; i < bytes; i++) {
		if (got[i] != want[i])
			cr_assert_fail("byte %lu (sector %lu): %u instead of %u", at + i,
				       (at + i) / BLK_SECTOR, got[i], want[i]);
	}
}

static void expect_disk(void)
{
	u8 *buf = driver_at(&v, BUF);

	for (u64 at = 0; at < DISK_BYTES; at += MIB(1)) {
		memset(buf, 0xcc, MIB(1));
		cr_assert_eq(request(VIRTIO_BLK_T_IN, at / BLK_SECTOR, BUF, MIB(1), true),
			     VIRTIO_BLK_S_OK);
		expect_bytes(buf, model + at, MIB(1), at);
	}
}

static void write_model(u64 sector, u32 bytes, u8 fill)
{
	cr_assert_eq(write_fill(sector, bytes, fill), VIRTIO_BLK_S_OK);
	memset(model + sector * BLK_SECTOR, fill, bytes);
}

static u8 zero_range(u32 type, u64 sector, u32 sectors, u32 flags)
{
	struct virtio_blk_discard_write_zeroes s = { .sector = sector,
						     .num_sectors = sectors,
						     .flags = flags };

	memcpy(driver_at(&v, BUF), &s, sizeof(s));
	return request(type, 0, BUF, sizeof(s), false);
}

static void expect_base_unchanged(void)
{
	u8 *got = malloc(DISK_BYTES), *want = malloc(DISK_BYTES);
	FILE *f = fopen(base, "r");

	cr_assert(f && got && want);
	for (u64 i = 0; i < DISK_BYTES; i++)
		want[i] = base_byte(i);
	cr_assert_eq(fread(got, 1, DISK_BYTES, f), DISK_BYTES);
	cr_assert_eq(getc(f), EOF);
	expect_bytes(got, want, DISK_BYTES, 0);
	fclose(f);
	free(got);
	free(want);
}

Test(virtio_blk, reads_and_writes_a_raw_image)
{
	struct virtio_blk_stats s;
	u64 capacity;

	plain(NULL, false);
	bus_read(&v.vm.mmio, v.base + VIRTIO_MMIO_CONFIG, &capacity, 4);
	cr_assert_eq((u32)capacity, DISK_BYTES / BLK_SECTOR);
	model_base();
	expect_disk();
	write_model(3, 512, 1);
	write_model(100, 40960, 2);
	write_model(DISK_BYTES / BLK_SECTOR - 1, 512, 3);
	expect_disk();
	cr_assert_eq(request(VIRTIO_BLK_T_FLUSH, 0, 0, 0, false), VIRTIO_BLK_S_OK);
	virtio_blk_stats(v.d, &s);
	cr_assert_eq(s.write_requests, 3u);
	cr_assert_eq(s.write_bytes, 41984u);
	cr_assert_eq(s.read_bytes, 2 * DISK_BYTES);
	cr_assert_eq(s.flushes, 1u);
	cr_assert_eq(s.errors, 0u);
	power_cycle();
	plain(NULL, true);
	expect_disk();
}

Test(virtio_blk, says_its_serial_number)
{
	plain(NULL, true);
	memset(driver_at(&v, BUF), 0xff, 20);
	cr_assert_eq(request(VIRTIO_BLK_T_GET_ID, 0, BUF, 20, true), VIRTIO_BLK_S_OK);
	cr_assert_str_eq(driver_at(&v, BUF), "serial-1");
	/* Room for less. */
	memset(driver_at(&v, BUF), 0xff, 20);
	cr_assert_eq(request(VIRTIO_BLK_T_GET_ID, 0, BUF, 3, true), VIRTIO_BLK_S_OK);
	cr_assert_eq(memcmp(driver_at(&v, BUF), "ser\xff", 4), 0);
}

Test(virtio_blk, refuses_what_is_not_on_the_disk)
{
	static const struct {
		u64 sector;
		u32 bytes;
	} bad[] = {
		{ DISK_BYTES / BLK_SECTOR, 512 },
		{ DISK_BYTES / BLK_SECTOR - 1, 1024 },
		{ UINT64_MAX, 512 },
		{ UINT64_MAX / BLK_SECTOR, 512 },
		{ UINT64_MAX / BLK_SECTOR + 1, 512 }, /* times 512 is 0 */
		{ 1ULL << 55, 512 },
		{ 0, 511 },
		{ 0, 513 },
	};
	struct virtio_blk_stats s;

	plain(overlay, false);
	for (u32 i = 0; i < ARRAY_SIZE(bad); i++) {
		cr_assert_eq(request(VIRTIO_BLK_T_IN, bad[i].sector, BUF, bad[i].bytes, true),
			     VIRTIO_BLK_S_IOERR, "read %u", i);
		cr_assert_eq(write_fill(bad[i].sector, bad[i].bytes, 1), VIRTIO_BLK_S_IOERR,
			     "write %u", i);
		cr_assert_eq(zero_range(VIRTIO_BLK_T_WRITE_ZEROES, bad[i].sector, 2, 0) ==
				     VIRTIO_BLK_S_IOERR,
			     i < 6, "zero %u", i);
	}
	virtio_blk_stats(v.d, &s);
	cr_assert_eq(s.errors, 2 * ARRAY_SIZE(bad) + 6);
	cr_assert_eq(request(99, 0, BUF, 512, true), VIRTIO_BLK_S_UNSUPP);
	cr_assert_eq(zero_range(VIRTIO_BLK_T_DISCARD, 0, 8, 1), VIRTIO_BLK_S_UNSUPP);
	cr_assert_eq(zero_range(VIRTIO_BLK_T_WRITE_ZEROES, 0, 8, 2), VIRTIO_BLK_S_UNSUPP);
	cr_assert_eq(zero_range(VIRTIO_BLK_T_DISCARD, 0, MIB(65) / BLK_SECTOR, 0),
		     VIRTIO_BLK_S_IOERR);
	/* More ranges than we offer, and half a range. */
	cr_assert_eq(request(VIRTIO_BLK_T_DISCARD, 0, BUF, 17 * 16, false), VIRTIO_BLK_S_IOERR);
	cr_assert_eq(request(VIRTIO_BLK_T_DISCARD, 0, BUF, 24, false), VIRTIO_BLK_S_IOERR);
}

Test(virtio_blk, request_without_status_breaks_the_queue)
{
	const struct driver_buf only[] = { { HDR, 16, false } };

	plain(NULL, true);
	driver_queue(&v, 0, only, 1);
	driver_kick(&v, 0);
	while (!(driver_read(&v, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET))
		usleep(1000);
	driver_up(&v, ALL);
	cr_assert_eq(request(VIRTIO_BLK_T_IN, 0, BUF, 512, true), VIRTIO_BLK_S_OK);
}

Test(virtio_blk, read_only_disk_takes_no_writes)
{
	plain(NULL, true);
	cr_assert(v.d->features & 1ULL << VIRTIO_BLK_F_RO);
	cr_assert_eq(write_fill(0, 512, 1), VIRTIO_BLK_S_IOERR);
	cr_assert_eq(zero_range(VIRTIO_BLK_T_DISCARD, 0, 8, 0), VIRTIO_BLK_S_IOERR);
	cr_assert_eq(request(VIRTIO_BLK_T_FLUSH, 0, 0, 0, false), VIRTIO_BLK_S_OK);
	expect_base_unchanged();
}

/* Header, data and status in pieces of odd sizes (VERSION_1 allows any layout). */
Test(virtio_blk, any_layout_of_buffers)
{
	struct virtio_blk_outhdr hdr = { .type = VIRTIO_BLK_T_IN, .sector = 1 };
	const struct driver_buf bufs[] = {
		{ HDR, 5, false },
		{ HDR + 5, 11, false },
		{ BUF, 100, true },
		{ BUF + 100, 1, true },
		{ BUF + 101, 411 + 512 + 1, true },
	};

	plain(overlay, false);
	memcpy(driver_at(&v, HDR), &hdr, sizeof(hdr));
	memset(driver_at(&v, BUF), 0xee, 2000);
	cr_assert_eq(driver_request(&v, 0, bufs, 5), 1025u);
	model_base();
	expect_bytes(driver_at(&v, BUF), model + 512, 1024, 512);
	cr_assert_eq(((u8 *)driver_at(&v, BUF))[1024], VIRTIO_BLK_S_OK);
	cr_assert_eq(((u8 *)driver_at(&v, BUF))[1025], 0xee);
}

Test(virtio_blk, many_requests_at_once)
{
	struct virtio_blk_outhdr *hdr = driver_at(&v, HDR + 0x1000);

	plain(overlay, false);
	/* 85 of three buffers are a full queue. */
	for (u32 round = 0; round < 20; round++) {
		for (u32 i = 0; i < 85; i++) {
			u64 at = (u64)i * sizeof(*hdr);
			const struct driver_buf bufs[] = { { HDR + 0x1000 + at, 16, false },
							   { BUF + i * 4096, 4096, true },
							   { STATUS + i, 1, true } };

			hdr[i].type = VIRTIO_BLK_T_IN;
			hdr[i].sector = (u64)i * 8 + round;
			((u8 *)driver_at(&v, STATUS))[i] = 0xff;
			driver_queue(&v, 0, bufs, 3);
		}
		driver_kick(&v, 0);
		for (u32 i = 0; i < 85; i++)
			driver_wait(&v, 0);
		for (u32 i = 0; i < 85; i++) {
			cr_assert_eq(((u8 *)driver_at(&v, STATUS))[i], VIRTIO_BLK_S_OK);
			cr_assert_eq(*(u8 *)driver_at(&v, BUF + i * 4096),
				     base_byte((i * 8 + round) * 512));
		}
	}
}

Test(virtio_blk, overlay_takes_the_writes)
{
	plain(overlay, false);
	model_base();
	write_model(8, CLUSTER, 1);	 /* a whole cluster */
	write_model(25, 512, 2);	 /* within one */
	write_model(39, 1024, 3);	 /* the end of one, the start of the next */
	write_model(50, 3 * CLUSTER, 4); /* whole ones and two edges */
	write_model(26, 512, 5);	 /* in one that is there */
	write_model(DISK_BYTES / 512 - 1, 512, 6);
	expect_disk();
	expect_base_unchanged();
	power_cycle();
	plain(overlay, false);
	expect_disk();
}

Test(virtio_blk, overlay_discards_and_zeroes)
{
	plain(overlay, false);
	model_base();
	write_model(0, 16 * CLUSTER, 9);
	/* What was there and what was not, with edges. */
	cr_assert_eq(zero_range(VIRTIO_BLK_T_WRITE_ZEROES, 100, 60, 1), VIRTIO_BLK_S_OK);
	memset(model + 100 * 512, 0, 60 * 512);
	cr_assert_eq(zero_range(VIRTIO_BLK_T_WRITE_ZEROES, 1001, 2, 0), VIRTIO_BLK_S_OK);
	memset(model + 1001 * 512, 0, 2 * 512);
	cr_assert_eq(zero_range(VIRTIO_BLK_T_WRITE_ZEROES, 1015, 2, 0), VIRTIO_BLK_S_OK);
	memset(model + 1015 * 512, 0, 2 * 512);
	cr_assert_eq(zero_range(VIRTIO_BLK_T_WRITE_ZEROES, 2000, 800, 0), VIRTIO_BLK_S_OK);
	memset(model + 2000 * 512, 0, 800 * 512);
	expect_disk();
	/* A discard takes whole clusters only; in our files they read as zeros then. */
	cr_assert_eq(zero_range(VIRTIO_BLK_T_DISCARD, 3001, 30, 0), VIRTIO_BLK_S_OK);
	memset(model + 3008 * 512, 0, 2 * CLUSTER);
	cr_assert_eq(zero_range(VIRTIO_BLK_T_DISCARD, 3041, 6, 0), VIRTIO_BLK_S_OK);
	cr_assert_eq(zero_range(VIRTIO_BLK_T_DISCARD, 0, 0, 0), VIRTIO_BLK_S_OK);
	expect_disk();
	expect_base_unchanged();
	power_cycle();
	plain(overlay, false);
	expect_disk();
}

Test(virtio_blk, raw_zeroes)
{
	plain(NULL, false);
	model_base();
	cr_assert_eq(zero_range(VIRTIO_BLK_T_WRITE_ZEROES, 3, 100, 1), VIRTIO_BLK_S_OK);
	memset(model + 3 * 512, 0, 100 * 512);
	expect_disk();
}

/* Concurrent writes to the sectors of one cluster, the first of them partial: the copy from the
 * base must not overwrite the others. */
Test(virtio_blk, writes_to_one_cluster_at_once)
{
	struct virtio_blk_outhdr *hdr = driver_at(&v, HDR + 0x1000);
	u8 *data = driver_at(&v, BUF);

	plain(overlay, false);
	model_base();
	for (u32 c = 0; c < 200; c++) {
		/* The whole cluster, and then five single sectors of it, before any is answered. */
		for (u32 i = 0; i < 6; i++) {
			u64 sector = 8 * (u64)c + i;
			u32 bytes = i ? 512 : CLUSTER;
			const struct driver_buf bufs[] = { { HDR + 0x1000 + i * 16ULL, 16, false },
							   { BUF + i * 4096ULL, bytes, false },
							   { STATUS + i, 1, true } };

			hdr[i].type = VIRTIO_BLK_T_OUT;
			hdr[i].sector = sector;
			/* Where two meet, both write the same. */
			for (u32 s = 0; s < bytes; s++)
				data[i * 4096 + s] = (u8)(c + (sector * 512 + s) / 512);
			driver_queue(&v, 0, bufs, 3);
		}
		driver_kick(&v, 0);
		for (u32 i = 0; i < 6; i++)
			driver_wait(&v, 0);
		for (u32 s = 0; s < CLUSTER; s++)
			model[c * CLUSTER + s] = (u8)(c + (c * CLUSTER + s) / 512);
	}
	expect_disk();
}

/* A killed machine: what was flushed is there, and nothing is torn. */
Test(virtio_blk, overlay_survives_a_kill)
{
	pid_t pid;
	int status;

	model_base();
	pid = fork();
	cr_assert_geq(pid, 0);
	if (pid == 0) {
		driver_machine(&v, 0); /* guest RAM does not go through fork() */
		plain(overlay, false);
		write_model(8, CLUSTER, 1);
		write_model(1025, 512, 2);
		if (request(VIRTIO_BLK_T_FLUSH, 0, 0, 0, false) != VIRTIO_BLK_S_OK)
			_exit(1);
		write_model(800, CLUSTER, 3);
		kill(getpid(), SIGKILL);
	}
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	cr_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	memset(model + 8 * 512, 1, CLUSTER);
	memset(model + 1025 * 512, 2, 512);
	plain(overlay, false);
	/* Not flushed: the old content. */
	expect_disk();
}

/* Linux always can flush; one that cannot relies on each write being safe. */
Test(virtio_blk, writes_through_for_a_driver_that_cannot_flush)
{
	struct blk_image *img;
	struct virtio_device *d;
	struct blk_image_config cfg = { .path = base, .overlay = overlay };
	pid_t pid;
	int status;

	model_base();
	pid = fork();
	cr_assert_geq(pid, 0);
	if (pid == 0) {
		driver_machine(&v, 0);
		img = open_image(&cfg);
		if (virtio_blk_new(&v.vm, img, NULL, &d) < 0)
			_exit(1);
		driver_attach(&v, d);
		driver_up(&v, ALL & ~(1ULL << VIRTIO_BLK_F_FLUSH));
		write_model(8, CLUSTER, 1);
		kill(getpid(), SIGKILL);
	}
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	cr_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	memset(model + 8 * 512, 1, CLUSTER);
	plain(overlay, false);
	expect_disk();
}

Test(virtio_blk, direct_io)
{
	struct blk_image_config cfg = { .path = base, .overlay = overlay, .direct = true };
	struct virtio_blk_outhdr hdr = { .type = VIRTIO_BLK_T_IN, .sector = 8 };
	const struct driver_buf odd[] = { { HDR, 16, false },
					  { BUF + 3, 700, true },
					  { BUF + 5000, 8192 - 700, true },
					  { STATUS, 1, true } };
	struct blk_image *img;

	if (blk_image_open(&cfg, &img, error) == -EINVAL)
		cr_skip_test("no direct I/O in /var/tmp: %s", error);
	blk_image_close(img);
	device(&cfg);
	model_base();
	write_model(8, 2 * CLUSTER, 1);
	write_model(800, MIB(1), 2);
	expect_disk();
	/* Buffers that are not aligned. */
	memcpy(driver_at(&v, HDR), &hdr, sizeof(hdr));
	memset(driver_at(&v, BUF), 0xee, 16384);
	driver_request(&v, 0, odd, 4);
	cr_assert_eq(*(u8 *)driver_at(&v, STATUS), VIRTIO_BLK_S_OK);
	cr_assert_eq(((u8 *)driver_at(&v, BUF))[2], 0xee);
	cr_assert_eq(((u8 *)driver_at(&v, BUF))[3], 1);
	cr_assert_eq(((u8 *)driver_at(&v, BUF))[702], 1);
	cr_assert_eq(((u8 *)driver_at(&v, BUF))[703], 0xee);
	cr_assert_eq(((u8 *)driver_at(&v, BUF))[5000 + 8192 - 701], 1);
	cr_assert_eq(((u8 *)driver_at(&v, BUF))[5000 + 8192 - 700], 0xee);
}

Test(virtio_blk, file_that_became_shorter)
{
	plain(NULL, true);
	cr_assert_eq(truncate(base, MIB(1)), 0);
	cr_assert_eq(request(VIRTIO_BLK_T_IN, 0, BUF, 4096, true), VIRTIO_BLK_S_OK);
	cr_assert_eq(request(VIRTIO_BLK_T_IN, MIB(1) / 512 - 1, BUF, 4096, true),
		     VIRTIO_BLK_S_IOERR);
	cr_assert_eq(request(VIRTIO_BLK_T_IN, MIB(2) / 512, BUF, 4096, true), VIRTIO_BLK_S_IOERR);
}

Test(virtio_blk, quiesce_reset_and_resume)
{
	plain(overlay, false);
	for (u32 i = 0; i < 20; i++) {
		virtio_quiesce(v.d);
		virtio_resume(v.d);
		cr_assert_eq(request(VIRTIO_BLK_T_IN, i, BUF, 4096, true), VIRTIO_BLK_S_OK);
		driver_up(&v, ALL);
		cr_assert_eq(request(VIRTIO_BLK_T_IN, i, BUF, 4096, true), VIRTIO_BLK_S_OK);
	}
	virtio_quiesce(v.d);
}

static int open_error(const struct blk_image_config *cfg)
{
	struct blk_image *img;
	int r = blk_image_open(cfg, &img, error);

	if (r == 0)
		blk_image_close(img);
	return r;
}

Test(virtio_blk, malformed_images)
{
	const struct blk_image_config raw = { .path = base };
	const struct blk_image_config over = { .path = base, .overlay = overlay };

	cr_assert_eq(truncate(base, 0), 0);
	cr_assert_eq(open_error(&raw), -EINVAL);
	cr_assert(strstr(error, "is empty"));
	cr_assert_eq(open_error(&over), -EINVAL);
	cr_assert_eq(truncate(base, 1000), 0);
	cr_assert_eq(open_error(&raw), -EINVAL);
	cr_assert(strstr(error, "multiple of 512"));
	cr_assert_eq(open_error(&over), -EINVAL);
	cr_assert_neq(access(overlay, F_OK), 0);
	cr_assert_eq(open_error(&(struct blk_image_config){ .path = dir, .readonly = true }),
		     -EINVAL);
	cr_assert_eq(open_error(&(struct blk_image_config){ .path = "/dev/null" }), -EINVAL);
	cr_assert_eq(open_error(&(struct blk_image_config){ .path = "/nonexistent" }), -ENOENT);
}

Test(virtio_blk, image_in_use)
{
	const struct blk_image_config raw = { .path = base }, ro = { .path = base, .readonly = 1 };
	struct blk_image *img = open_image(&raw);

	cr_assert_eq(open_error(&raw), -EBUSY);
	cr_assert_eq(open_error(&ro), -EBUSY);
	cr_assert(strstr(error, "in use"));
	blk_image_close(img);
	img = open_image(&ro);
	cr_assert_eq(open_error(&ro), 0);
	cr_assert_eq(open_error(&raw), -EBUSY);
	blk_image_close(img);
}

static void patch(const char *path, u64 offset, u8 byte)
{
	int fd = open(path, O_WRONLY);

	cr_assert_geq(fd, 0);
	cr_assert_eq(pwrite(fd, &byte, 1, (off_t)offset), 1);
	close(fd);
}

Test(virtio_blk, damaged_overlays)
{
	const struct blk_image_config over = { .path = base, .overlay = overlay };
	struct timespec times[2] = { { .tv_nsec = UTIME_OMIT }, { .tv_sec = 1000 } };
	struct stat st;

	cr_assert_eq(open_error(&over), 0);
	cr_assert_eq(open_error(&over), 0);
	cr_assert_eq(stat(overlay, &st), 0);
	for (u32 at = 0; at < 80; at++) {
		int fd = open(overlay, O_RDONLY);
		u8 old;

		cr_assert_eq(pread(fd, &old, 1, at), 1);
		close(fd);
		patch(overlay, at, old ^ 0x10);
		cr_assert_eq(open_error(&over), -EINVAL, "byte %u", at);
		patch(overlay, at, old);
	}
	cr_assert_eq(open_error(&over), 0);
	cr_assert_eq(truncate(overlay, st.st_size - 1), 0);
	cr_assert_eq(open_error(&over), -EINVAL);
	cr_assert_eq(truncate(overlay, 100), 0);
	cr_assert_eq(open_error(&over), -EINVAL);
	cr_assert_eq(unlink(overlay), 0);
	/* Another base than the one it was made for. */
	cr_assert_eq(open_error(&over), 0);
	cr_assert_eq(utimensat(AT_FDCWD, base, times, 0), 0);
	cr_assert_eq(open_error(&over), -EINVAL);
	cr_assert(strstr(error, "another base"));
	expect_base_unchanged();
}
