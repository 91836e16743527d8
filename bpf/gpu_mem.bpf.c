/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * gpu_mem: how much GPU memory each process holds through cuMemAlloc_v2, now and at most.
 *
 * Uprobes on libcuda.so.1's exports, which every CUDA runtime ends in. A free carries no size, so the size
 * of each allocation is remembered by (process, pointer). Which GPU an allocation is on follows from the
 * context that is current in the thread: contexts are learned when they are made (cuCtxCreate,
 * cuDevicePrimaryCtxRetain), the thread's stack of them from cuCtxSetCurrent, cuCtxPushCurrent and
 * cuCtxPopCurrent. Where that was not seen and the process has more than one GPU, the GPU is UNKNOWN_GPU;
 * it is never guessed. GPU numbers are CUDA ordinals: relative to the process's CUDA_VISIBLE_DEVICES.
 *
 * One library can be reached through several mounts and then be probed twice. Nothing is counted twice all
 * the same: entering twice stores the same state, and only the first return finds it.
 */
#include "gpu_context.h"

char LICENSE[] SEC("license") = "GPL";

static __always_inline void count_failure(u32 result)
{
	u64 *failed = bpf_map_lookup_elem(&failures, &result), zero = 0;

	if (!failed) {
		bpf_map_update_elem(&failures, &result, &zero, BPF_NOEXIST);
		failed = bpf_map_lookup_elem(&failures, &result);
	}
	if (failed)
		__sync_fetch_and_add(failed, 1);
}

/* ---- CUresult cuMemAlloc_v2(CUdeviceptr *dptr, size_t bytesize) ---- */

static __always_inline void alloc_enter(struct pt_regs *ctx)
{
	u64 out = PT_REGS_PARM1(ctx);
	u64 bytes = PT_REGS_PARM2(ctx);
	struct thread *t = entered(IN_ALLOC);

	if (t) {
		t->alloc_out = out;
		t->alloc_bytes = bytes;
	}
}

static __always_inline void alloc_return(struct pt_regs *ctx)
{
	int result = PT_REGS_RC(ctx);
	struct thread *t = returned(IN_ALLOC);
	struct allocation_key key = {.tgid = current_tgid()};
	struct allocation made = {}, *stale;
	struct process *p;

	if (!t)
		return;
	if (result != CUDA_SUCCESS) {
		count_failure(result);
		return;
	}
	if (bpf_probe_read_user(&key.pointer, sizeof(key.pointer), (void *)t->alloc_out)) {
		count(DROP_UNREADABLE);
		return;
	}
	count(COUNT_ALLOCATIONS);
	p = process_of(key.tgid);
	if (!p)
		return;
	/* The driver gives no address twice: an entry that is there is of memory freed by another call. */
	stale = bpf_map_lookup_elem(&allocations, &key);
	if (stale)
		discharge(p, stale);
	made.bytes = t->alloc_bytes;
	place(t, p, key.tgid, &made);
	p->tables = 1;
	if (bpf_map_update_elem(&allocations, &key, &made, BPF_ANY)) {
		/* Its free could not be subtracted, so it is not added either. */
		count(DROP_ALLOCATIONS_FULL);
		return;
	}
	charge(p, made.gpu, made.bytes);
}

/* ---- CUresult cuMemFree_v2(CUdeviceptr dptr) ---- */

/* Account a free that worked. */
static __always_inline void freed(const struct thread *t)
{
	u32 tgid = current_tgid();
	struct process *p;

	count(COUNT_FREES);
	if (!t->freed.bytes) {
		count(COUNT_UNKNOWN_FREES);
		return;
	}
	p = bpf_map_lookup_elem(&processes, &tgid);
	if (p)
		discharge(p, &t->freed);
}

/*
 * The entry is taken out before the driver frees the memory: afterwards another thread may be given the
 * same address, and its new entry would be removed instead.
 */
static __always_inline void free_enter(struct pt_regs *ctx)
{
	u64 pointer = PT_REGS_PARM1(ctx);
	struct thread *t = bpf_task_storage_get(&threads, bpf_get_current_task_btf(), 0, 0);
	struct allocation_key key = {.tgid = current_tgid(), .pointer = pointer};
	struct allocation *known;

	if (!pointer) /* does nothing, and works */
		return;
	if (t && (t->pending & IN_FREE)) {
		if (t->free_pointer == pointer)
			return;
		count(DROP_MISSED_RETURN);
		freed(t);
	}
	t = entered(IN_FREE);
	if (!t)
		return;
	t->free_pointer = pointer;
	t->freed.bytes = 0;
	known = bpf_map_lookup_elem(&allocations, &key);
	if (known) {
		struct allocation taken = *known;

		/* Who removes the entry accounts for it: the end of a context may be doing so at this moment.
		 */
		if (!bpf_map_delete_elem(&allocations, &key))
			t->freed = taken;
	}
}

static __always_inline void free_return(struct pt_regs *ctx)
{
	int result = PT_REGS_RC(ctx);
	struct thread *t = returned(IN_FREE);
	struct allocation_key key = {.tgid = current_tgid()};

	if (!t)
		return;
	if (result == CUDA_SUCCESS) {
		freed(t);
	} else if (t->freed.bytes) {
		key.pointer = t->free_pointer;
		if (bpf_map_update_elem(&allocations, &key, &t->freed, BPF_ANY))
			count(DROP_ALLOCATIONS_FULL);
	}
}

/* ---- One program for entering any of the functions, one for returning from it ---- */

/*
 * Two programs for all functions, so that a library takes two attachments: detaching one waits for a grace
 * period of the kernel's.
 */
SEC("uprobe")
int on_enter(struct pt_regs *ctx)
{
	switch (bpf_get_attach_cookie(ctx)) {
	case CU_MEM_ALLOC:
		alloc_enter(ctx);
		break;
	case CU_MEM_FREE:
		free_enter(ctx);
		break;
	case CU_DEVICE_GET_COUNT:
		count_enter(ctx);
		break;
	case CU_CTX_CREATE_V2:
		create_enter(ctx, 2);
		break;
	case CU_CTX_CREATE_V3:
		create_enter(ctx, 3);
		break;
	case CU_CTX_CREATE_V4:
		create_enter(ctx, 4);
		break;
	case CU_CTX_DESTROY:
		destroy_enter(ctx);
		break;
	case CU_CTX_SET_CURRENT:
		set_enter(ctx);
		break;
	case CU_CTX_PUSH_CURRENT:
		push_enter(ctx);
		break;
	case CU_CTX_POP_CURRENT:
		pop_enter();
		break;
	case CU_DEVICE_PRIMARY_CTX_RETAIN:
		retain_enter(ctx);
		break;
	case CU_DEVICE_PRIMARY_CTX_RESET:
		reset_enter(ctx);
		break;
	}
	return 0;
}

SEC("uretprobe")
int on_return(struct pt_regs *ctx)
{
	switch (bpf_get_attach_cookie(ctx)) {
	case CU_MEM_ALLOC:
		alloc_return(ctx);
		break;
	case CU_MEM_FREE:
		free_return(ctx);
		break;
	case CU_DEVICE_GET_COUNT:
		count_return(ctx);
		break;
	case CU_CTX_CREATE_V2:
	case CU_CTX_CREATE_V3:
	case CU_CTX_CREATE_V4:
		create_return(ctx);
		break;
	case CU_CTX_DESTROY:
		destroy_return(ctx);
		break;
	case CU_CTX_SET_CURRENT:
		set_return(ctx);
		break;
	case CU_CTX_PUSH_CURRENT:
		push_return(ctx);
		break;
	case CU_CTX_POP_CURRENT:
		pop_return(ctx);
		break;
	case CU_DEVICE_PRIMARY_CTX_RETAIN:
		retain_return(ctx);
		break;
	case CU_DEVICE_PRIMARY_CTX_RESET:
		reset_return(ctx);
		break;
	}
	return 0;
}

/* ---- The end of a process, and exec, which ends its program ---- */

struct atomic {
	int counter;
} __relocated;

typedef struct atomic atomic_t;

struct signal_struct {
	atomic_t live;
} __relocated;

struct task_struct {
	int tgid;
	struct signal_struct *signal;
} __relocated;

static __always_inline void forget_process(u32 tgid)
{
	struct process *p = bpf_map_lookup_elem(&processes, &tgid);
	struct sweep what = {.tgid = tgid, .scope = WHOLE_PROCESS};
	u64 tables;

	if (!p)
		return;
	tables = p->tables;
	bpf_map_delete_elem(&processes, &tgid);
	if (!tables)
		return;
	bpf_for_each_map_elem(&allocations, sweep_allocation, &what, 0);
	bpf_for_each_map_elem(&contexts, sweep_context, &what, 0);
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(on_exit, struct task_struct *task)
{
	/*
	 * Every thread comes here; the last one finds no live one left. Kernels from 6.17 also pass this as
	 * an argument (group_dead), which older ones do not have.
	 */
	if (task->signal->live.counter == 0)
		forget_process(task->tgid);
	return 0;
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(on_exec, struct task_struct *task)
{
	bpf_task_storage_delete(&threads, task);
	forget_process(task->tgid);
	return 0;
}
