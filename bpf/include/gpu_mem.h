/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * State of the gpu_mem probe: what is remembered of threads, processes and allocations, and how a process's
 * bytes are counted.
 */
#pragma once

#include "vmlinux_min.h"

/* GPUs of one process that are told apart; a higher ordinal is counted as unknown. */
#define MAX_GPUS    32
#define UNKNOWN_GPU MAX_GPUS

/* Contexts on a thread's stack that are remembered; deeper ones are unknown until popped. */
#define CONTEXT_DEPTH 8

/* Attempts to raise a peak against other threads that raise it at the same moment. */
#define PEAK_ATTEMPTS 16

#define CUDA_SUCCESS 0

/* User space finds these by name in this object's BTF, so that the numbers stand here alone. */
enum counter {
	COUNT_ALLOCATIONS,
	COUNT_FREES,
	/* Frees of memory that is not in the table: allocated before the probe came, or by another call. */
	COUNT_UNKNOWN_FREES,
	/* An allocation that is not tracked because the table is full (raise max_allocations). */
	DROP_ALLOCATIONS_FULL,
	/* A process that is not tracked because the table is full (raise max_processes). */
	DROP_PROCESSES_FULL,
	/* A context whose GPU cannot be remembered: its allocations have an unknown GPU. */
	DROP_CONTEXTS_FULL,
	/* The kernel had no memory for a thread's state: the call is not seen. */
	DROP_THREAD_STATE,
	/* The pointer that a call returned could not be read. */
	DROP_UNREADABLE,
	/* A call whose return was not seen; a free is then taken to have worked. */
	DROP_MISSED_RETURN,
	/* A peak that other threads kept from being raised: it may be low by one allocation. */
	DROP_PEAK_RACE,
	COUNTERS,
};

struct allocation_key {
	u32 tgid;
	u32 unused;
	u64 pointer;
};

struct allocation {
	u64 bytes;
	u64 context; /* 0: not known */
	u32 gpu;
	u32 primary; /* the context is the GPU's primary one */
};

struct context_key {
	u32 tgid;
	u32 unused;
	u64 context;
};

struct context {
	u32 gpu;
	u32 primary;
};

struct usage {
	u64 current_bytes;
	u64 peak_bytes;
};

struct process {
	u64 gpu_count; /* as cuDeviceGetCount told this process; 0: not seen */
	u64 tables;    /* not 0: there may be entries of this process in the tables below */
	struct usage gpu[MAX_GPUS + 1];
};

/* Which function a probe is at: the cookie that user space gives the attachment. */
enum function {
	CU_MEM_ALLOC,
	CU_MEM_FREE,
	CU_DEVICE_GET_COUNT,
	CU_CTX_CREATE_V2,
	CU_CTX_CREATE_V3,
	CU_CTX_CREATE_V4,
	CU_CTX_DESTROY,
	CU_CTX_SET_CURRENT,
	CU_CTX_PUSH_CURRENT,
	CU_CTX_POP_CURRENT,
	CU_DEVICE_PRIMARY_CTX_RETAIN,
	CU_DEVICE_PRIMARY_CTX_RESET,
};

enum pending {
	IN_ALLOC = 1,
	IN_FREE = 2,
	IN_CREATE = 4,
	IN_RETAIN = 8,
	IN_SET = 16,
	IN_PUSH = 32,
	IN_POP = 64,
	IN_DESTROY = 128,
	IN_RESET = 256,
	IN_COUNT = 512,
};

/* What a thread is in the middle of, and its stack of contexts. The kernel frees it with the thread. */
struct thread {
	u32 pending;
	u32 depth; /* 0: what is current is not known */
	u64 stack[CONTEXT_DEPTH];
	u64 alloc_out;
	u64 alloc_bytes;
	u64 free_pointer;
	struct allocation freed;
	u64 context_out; /* cuCtxCreate, cuDevicePrimaryCtxRetain: where the context will be written */
	u64 context;	 /* cuCtxSetCurrent, cuCtxPushCurrent, cuCtxDestroy: the argument */
	u64 count_out;
	u32 gpu;
	u32 unused;
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct thread);
} threads SEC(".maps");

/* Sized by user space: [gpu_mem] max_allocations. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct allocation_key);
	__type(value, struct allocation);
} allocations SEC(".maps");

/* Sized by user space: [gpu_mem] max_processes. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, u32);
	__type(value, struct process);
} processes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct context_key);
	__type(value, struct context);
} contexts SEC(".maps");

/* CUresult of a failed allocation: how often. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, u32);
	__type(value, u64);
} failures SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, u32);
	__type(value, u64);
} counters SEC(".maps");

/* Keep the names of both in this object's BTF. */
const volatile enum counter last_counter = COUNTERS;
const volatile enum function first_function = CU_MEM_ALLOC;

/* The first values of new entries; a struct process is too large for the BPF stack. */
static const volatile struct process new_process;

static __always_inline void count(u32 what)
{
	u64 *value = bpf_map_lookup_elem(&counters, &what);

	/* Atomic although each CPU has its own: in a uprobe one task may preempt another that is here. */
	if (value)
		__sync_fetch_and_add(value, 1);
}

static __always_inline u32 current_tgid(void)
{
	return bpf_get_current_pid_tgid() >> 32;
}

/* ---- The thread's state between entering a function and returning from it ---- */

static __always_inline struct thread *entered(u32 function)
{
	struct thread *t =
		bpf_task_storage_get(&threads, bpf_get_current_task_btf(), 0, BPF_LOCAL_STORAGE_GET_F_CREATE);

	if (t)
		t->pending |= function;
	else
		count(DROP_THREAD_STATE);
	return t;
}

/* The state, or NULL when entering was not seen: the probe came meanwhile, or a second probe is here. */
static __always_inline struct thread *returned(u32 function)
{
	struct thread *t = bpf_task_storage_get(&threads, bpf_get_current_task_btf(), 0, 0);

	if (!t || !(t->pending & function))
		return NULL;
	t->pending &= ~function;
	return t;
}

/* ---- Processes and what they hold ---- */

static __always_inline struct process *process_of(u32 tgid)
{
	struct process *p = bpf_map_lookup_elem(&processes, &tgid);

	if (p)
		return p;
	/* Another thread may be first: then its entry is found. */
	bpf_map_update_elem(&processes, &tgid, (const void *)&new_process, BPF_NOEXIST);
	p = bpf_map_lookup_elem(&processes, &tgid);
	if (!p)
		count(DROP_PROCESSES_FULL);
	return p;
}

static __always_inline void charge(struct process *p, u32 gpu, u64 bytes)
{
	struct usage *usage = &p->gpu[gpu < MAX_GPUS ? gpu : UNKNOWN_GPU];
	u64 now = __sync_fetch_and_add(&usage->current_bytes, bytes) + bytes;

	for (int i = 0; i < PEAK_ATTEMPTS; i++) {
		u64 peak = *(volatile u64 *)&usage->peak_bytes;

		if (peak >= now || __sync_val_compare_and_swap(&usage->peak_bytes, peak, now) == peak)
			return;
	}
	count(DROP_PEAK_RACE);
}

static __always_inline void discharge(struct process *p, const struct allocation *a)
{
	u32 gpu = a->gpu;

	__sync_fetch_and_add(&p->gpu[gpu < MAX_GPUS ? gpu : UNKNOWN_GPU].current_bytes, -a->bytes);
}

/* ---- What ends many allocations at once ---- */

enum scope {
	WHOLE_PROCESS,
	ONE_CONTEXT,
	PRIMARY_CONTEXT, /* of one GPU */
};

struct sweep {
	u32 tgid;
	enum scope scope;
	u64 context;
	u32 gpu;
};

static long sweep_allocation(void *map, struct allocation_key *key, struct allocation *a, struct sweep *what)
{
	struct allocation gone = *a;
	struct process *p;

	if (key->tgid != what->tgid || (what->scope == ONE_CONTEXT && a->context != what->context) ||
	    (what->scope == PRIMARY_CONTEXT && (!a->primary || a->gpu != what->gpu)))
		return 0;
	/* At the end of the process its totals are gone already. */
	p = bpf_map_lookup_elem(&processes, &key->tgid);
	if (!bpf_map_delete_elem(&allocations, key) && p)
		discharge(p, &gone);
	return 0;
}

static long sweep_context(void *map, struct context_key *key, struct context *context, struct sweep *what)
{
	if (key->tgid == what->tgid)
		bpf_map_delete_elem(&contexts, key);
	return 0;
}
