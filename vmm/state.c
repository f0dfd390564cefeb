/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "vmm/state.h"

#define STATE_MAGIC "BLSTSTAT"

struct file_header {
	char magic[8];
	u32 version, nr_records;
};

struct record {
	char tag[STATE_TAG_BYTES];
	u32 instance, bytes;
};

#define RECORD_ALIGN 8

/* Steps through the records, which are checked. NULL: no more. */
static const struct record *next_record(const u8 *data, size_t bytes, size_t *at)
{
	const struct record *r = (const struct record *)(data + *at);

	if (bytes - *at < sizeof(*r))
		return NULL;
	*at += sizeof(*r) + ROUND_UP(r->bytes, RECORD_ALIGN);
	return r;
}

static const struct record *find(const u8 *data, size_t bytes, const char *tag, u32 instance)
{
	const struct record *r;
	size_t at = sizeof(struct file_header);

	while (bytes > at && (r = next_record(data, bytes, &at))) {
		if (r->instance == instance && strncmp(r->tag, tag, sizeof(r->tag)) == 0)
			return r;
	}
	return NULL;
}

static int reserve(struct state_writer *w, size_t bytes)
{
	size_t capacity = MAX(w->capacity, (size_t)65536);
	u8 *data;

	if (w->bytes + bytes > STATE_FILE_MAX)
		return -EINVAL;
	while (capacity < w->bytes + bytes)
		capacity *= 2;
	if (capacity == w->capacity)
		return 0;
	data = realloc(w->data, capacity);
	if (!data)
		return -ENOMEM;
	w->data = data;
	w->capacity = capacity;
	return 0;
}

int state_put(struct state_writer *w, const char *tag, u32 instance, const void *data, size_t bytes)
{
	size_t header = w->bytes ? 0 : sizeof(struct file_header);
	size_t padded = ROUND_UP(bytes, RECORD_ALIGN);
	struct record record = { .instance = instance, .bytes = (u32)bytes };
	struct file_header *h;
	int r;

	if (!tag[0] || strlen(tag) >= sizeof(record.tag) || bytes > STATE_RECORD_MAX ||
	    (w->bytes && find(w->data, w->bytes, tag, instance)))
		return -EINVAL;
	r = reserve(w, header + sizeof(record) + padded);
	if (r < 0)
		return r;
	if (header)
		memset(w->data, 0, header);
	w->bytes += header;
	memcpy(record.tag, tag, strlen(tag));
	memcpy(w->data + w->bytes, &record, sizeof(record));
	memset(w->data + w->bytes + sizeof(record), 0, padded);
	if (bytes)
		memcpy(w->data + w->bytes + sizeof(record), data, bytes);
	w->bytes += sizeof(record) + padded;
	h = (struct file_header *)w->data;
	memcpy(h->magic, STATE_MAGIC, sizeof(h->magic));
	h->version = STATE_VERSION;
	h->nr_records = ++w->nr_records;
	return 0;
}

static int write_all(int fd, const u8 *data, size_t bytes)
{
	while (bytes) {
		ssize_t n = write(fd, data, bytes);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		data += n;
		bytes -= (size_t)n;
	}
	return 0;
}

int state_writer_save(const struct state_writer *w, int dir_fd, const char *name)
{
	int r, fd = openat(dir_fd, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

	if (fd < 0)
		return -errno;
	r = write_all(fd, w->data, w->bytes);
	if (r == 0 && fsync(fd) < 0)
		r = -errno;
	if (close(fd) < 0 && r == 0)
		r = -errno;
	if (r < 0)
		unlinkat(dir_fd, name, 0);
	return r;
}

void state_writer_free(struct state_writer *w)
{
	free(w->data);
	memset(w, 0, sizeof(*w));
}

/* That every record lies inside, and has a name that ends. */
static int check(const u8 *data, size_t bytes)
{
	const struct file_header *h = (const struct file_header *)data;
	size_t at = sizeof(*h);

	if (bytes < sizeof(*h) || memcmp(h->magic, STATE_MAGIC, sizeof(h->magic)) != 0)
		return -EBADMSG;
	if (h->version != STATE_VERSION)
		return -ENOTSUP;
	for (u32 i = 0; i < h->nr_records; i++) {
		const struct record *r = (const struct record *)(data + at);
		u64 padded;

		if (bytes - at < sizeof(*r))
			return -EBADMSG;
		padded = ROUND_UP(r->bytes, RECORD_ALIGN);
		if (r->bytes > STATE_RECORD_MAX || padded > bytes - at - sizeof(*r) ||
		    r->tag[STATE_TAG_BYTES - 1] != '\0' || r->tag[0] == '\0')
			return -EBADMSG;
		at += sizeof(*r) + padded;
	}
	return at == bytes ? 0 : -EBADMSG;
}

int state_reader_init(struct state_reader *r, u8 *data, size_t bytes)
{
	int rc = check(data, bytes);

	*r = (struct state_reader){ 0 };
	if (rc < 0) {
		free(data);
		return rc;
	}
	r->data = data;
	r->bytes = bytes;
	return 0;
}

static int read_all(int fd, u8 *data, size_t bytes)
{
	while (bytes) {
		ssize_t n = read(fd, data, bytes);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EBADMSG;
		data += n;
		bytes -= (size_t)n;
	}
	return 0;
}

int state_reader_open(struct state_reader *r, int dir_fd, const char *name)
{
	int rc, fd = openat(dir_fd, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	struct stat st;
	u8 *data;

	*r = (struct state_reader){ 0 };
	if (fd < 0)
		return -errno;
	rc = fstat(fd, &st) < 0 ? -errno : 0;
	if (rc == 0 && (!S_ISREG(st.st_mode) || (u64)st.st_size > STATE_FILE_MAX))
		rc = -EBADMSG;
	data = rc == 0 ? malloc(MAX((size_t)st.st_size, (size_t)1)) : NULL;
	if (rc == 0)
		rc = data ? read_all(fd, data, (size_t)st.st_size) : -ENOMEM;
	close(fd);
	if (rc < 0) {
		free(data);
		return rc;
	}
	return state_reader_init(r, data, (size_t)st.st_size);
}

void state_reader_free(struct state_reader *r)
{
	free(r->data);
	*r = (struct state_reader){ 0 };
}

const void *state_get(const struct state_reader *r, const char *tag, u32 instance,
		      size_t *ret_bytes)
{
	const struct record *record = find(r->data, r->bytes, tag, instance);

	if (!record)
		return NULL;
	*ret_bytes = record->bytes;
	return record + 1;
}

int state_get_exact(const struct state_reader *r, const char *tag, u32 instance, void *ret,
		    size_t bytes)
{
	size_t have;
	const void *data = state_get(r, tag, instance, &have);

	if (!data)
		return -ENOENT;
	if (have != bytes)
		return -EBADMSG;
	memcpy(ret, data, bytes);
	return 0;
}
