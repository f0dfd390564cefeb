/* SPDX-License-Identifier: MIT */
/*
 * Images: snapshots of guest memory, as files, from which many clones start (inside of the engine).
 *
 * An image is a part of a file, loaded into consecutive store pages: page i of it is store page
 * spn + i, so that a clone's memory is one mapping, but for stretches of zeros, which it leaves
 * empty. The daemon copies it once, slice by slice, from a descriptor that a VMM has passed; clones
 * that pass the same file (same device, inode, size, times of change; asked before and after each
 * read) get what was loaded.
 *
 * References: an image holds one of each of its store pages, as long as a VM lives that was given
 * it or waits for it. So what a later clone is given without another look is what was copied
 * (invariant 3). The clones' pages have references and covers of their own, as after a merge
 * (invariant 4).
 *
 * After a restart of the daemon images are not known any more: the sharing of the clones that run
 * is found as always, but the next clone has the file loaded again.
 *
 * Cost: 8 bytes for each stretch, and the content for as long as the image lives.
 */
#ifndef BALLAST_KSMD_IMAGE_H
#define BALLAST_KSMD_IMAGE_H

#include "common/types.h"

struct engine;
struct ksm_domain;
struct ksm_image;
struct ksm_op_run;
struct ksm_vm;

/* What one VM asked for, and how far that is. */
struct image_request {
	bool active;
	bool lost;  /* with its connection: nobody waits for its end */
	u32 number; /* of the request, never 0: says whether a run is of it */
	int fd;	    /* -1: the image has it, or it is not needed any more */
	u64 hva, bytes, offset;
	struct ksm_image *image; /* NULL: not found or made yet */
	u32 run, page;		 /* next: a stretch of the image, and a page in it */
	u64 nr_queued;		 /* pages that the agent was, or shall be, asked to map */
	u64 outstanding;	 /* of them, those that are not settled */
	int err;		 /* the first that went wrong */
};

/* Is there a request that does not just wait for the agent? */
bool image_has_work(const struct ksm_vm *vm);
/* Some work for the VM's request; it is not active any more when it has ended and the agent was
 * told. */
void image_step(struct ksm_vm *vm);
/* The connection is lost: its request will not be answered, and goes at the next step. */
void image_lose(struct ksm_vm *vm);
/* A page of a run of image_request @number was settled. */
void image_settled(struct ksm_vm *vm, u32 number, int status);
/* The VM is gone: so is what it asked for, and its part in images. */
void image_vm_exit(struct ksm_vm *vm);

/* Frees some of what no VM uses any more. True: there is more. */
bool images_reap(struct engine *e);
void images_free(struct ksm_domain *d);	      /* at the end of the daemon */
u64 images_bytes(const struct ksm_domain *d); /* metadata */

#endif
