/* SPDX-License-Identifier: MIT */
/*
 * Failing system calls: the linker sends every system call of the agent library through a wrapper
 * here (--wrap, live.mk), which counts it and may fail it. Only what the agent does is touched: its
 * threads, and calls that a VMM thread makes inside of the hooks (inject_as_vmm()).
 *
 * A site is the n-th call of a kind by a role while the window is open. Nothing here knows how the
 * agent is built, only what it asks the kernel for.
 */
#ifndef BALLAST_TESTS_FAULTS_INJECT_H
#define BALLAST_TESTS_FAULTS_INJECT_H

#include "common/types.h"

enum role {
	ROLE_NONE,  /* not the agent: never counted, never failed */
	ROLE_LINK,  /* "ballast-agent" */
	ROLE_FAULT, /* "ballast-fault" */
	ROLE_VMM,   /* a VMM's thread in a hook */
	ROLE_SWAP,  /* "ballast-swap" */
	NR_ROLES,
};

enum call {
	CALL_REGISTER,
	CALL_UNREGISTER,
	CALL_MOVE,
	CALL_ZEROPAGE,
	CALL_COPY,
	CALL_WRITEPROTECT,
	CALL_WAKE,
	CALL_IOCTL, /* any other */
	CALL_MMAP_FILE,
	CALL_MMAP_ANON,
	CALL_DONTNEED,
	CALL_POPULATE,
	CALL_MADVISE, /* any other advice */
	CALL_MINCORE,
	CALL_PREAD,
	CALL_PWRITE, /* and making sure that it was written */
	CALL_FSTAT,
	CALL_FSTATFS,
	CALL_SENDMSG,
	CALL_RECVMSG,
	CALL_POLL,
	CALL_OPEN,
	CALL_READLINK,
	CALL_READ,
	CALL_WRITE,
	CALL_GETDENTS,
	CALL_FCNTL,
	CALL_LSEEK,
	CALL_ACCESS,
	CALL_SOCKET,
	CALL_CONNECT,
	CALL_EVENTFD,
	CALL_USERFAULTFD,
	CALL_THREAD,
	CALL_ALLOC,
	CALL_SYSCALL, /* any other by number */
	NR_CALLS,
};

/* Stands for an errno: the call does a part of its work, and says what the kernel says then. */
#define PARTIAL (-1)
#define DONE	(-2) /* all is done, and an error returned all the same */

struct rule {
	enum role role;
	enum call call;
	u32 from, times; /* the sites that fail, counted from 1 */
	int error;	 /* errno, PARTIAL or DONE */
};

/* Counts from 0, and fails what the rules say until inject_close(), which returns how many calls
 * failed. */
void inject_open(const struct rule *rules, u32 nr);
u32 inject_close(void);
/* Fails @permille of all calls, with the errors that fit them, drawn from @seed. */
void inject_open_random(u32 permille, u64 seed);
/* Calls since inject_open(). */
u32 inject_seen(enum role role, enum call call);

/* Around a VMM thread's call of a hook. */
void inject_as_vmm(bool on);

/* The errors that a kind of call is failed with: the @i-th, 0 at the end. */
int inject_error(enum call call, u32 i);
const char *inject_call_name(enum call call);
const char *inject_role_name(enum role role);
const char *inject_error_name(int error);

/* Pairs of (role and call, error) failed so far, and calls failed in all. */
u32 inject_distinct(void);
u32 inject_kinds(void); /* kinds of call failed */
u64 inject_total(void);

/* A host that may be dangerous: descriptors with O_DIRECT are on NFS, which is mounted. */
void inject_fake_nfs(bool on);

#endif
