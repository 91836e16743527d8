/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Which GPU a thread of a CUDA process works on: the device count that the process was told, the contexts it
 * made, the stack of current contexts of each thread, and the calls that end a context's allocations.
 */
#pragma once

#include "gpu_mem.h"

/* The context that is current in this thread; 0 when that is not known. */
static __always_inline u64 current_context(const struct thread *t)
{
	u32 top = t->depth - 1;

	return top < CONTEXT_DEPTH ? t->stack[top] : 0;
}

/* Fill in where an allocation of this thread lies. */
static __always_inline void place(const struct thread *t, const struct process *p, u32 tgid,
				  struct allocation *a)
{
	struct context_key key = {.tgid = tgid, .context = current_context(t)};
	const struct context *context = key.context ? bpf_map_lookup_elem(&contexts, &key) : NULL;

	a->context = key.context;
	if (context) {
		a->gpu = context->gpu;
		a->primary = context->primary;
	} else {
		/* With one GPU there is no other that it could be. */
		a->gpu = p->gpu_count == 1 ? 0 : UNKNOWN_GPU;
		a->primary = 0;
	}
}

/* CUresult cuDeviceGetCount(int *count) */

static __always_inline void count_enter(struct pt_regs *ctx)
{
	u64 out = PT_REGS_PARM1(ctx);
	struct thread *t = entered(IN_COUNT);

	if (t)
		t->count_out = out;
}

static __always_inline void count_return(struct pt_regs *ctx)
{
	int result = PT_REGS_RC(ctx);
	struct thread *t = returned(IN_COUNT);
	struct process *p;
	u32 gpus = 0;

	if (!t || result != CUDA_SUCCESS)
		return;
	if (bpf_probe_read_user(&gpus, sizeof(gpus), (void *)t->count_out)) {
		count(DROP_UNREADABLE);
		return;
	}
	p = process_of(current_tgid());
	if (p)
		p->gpu_count = gpus;
}

/* ---- Contexts: made, made current, destroyed ---- */

static __always_inline void push(struct thread *t, u64 context)
{
	u32 place = t->depth++;

	if (place < CONTEXT_DEPTH)
		t->stack[place] = context;
}

/* Learn the context that the call of this thread has made, and return it; 0 if it cannot be read. */
static __always_inline u64 learn_context(struct thread *t, u32 primary)
{
	struct context_key key = {.tgid = current_tgid()};
	struct context made = {.gpu = t->gpu, .primary = primary};
	struct process *p;

	if (bpf_probe_read_user(&key.context, sizeof(key.context), (void *)t->context_out)) {
		count(DROP_UNREADABLE);
		return 0;
	}
	p = process_of(key.tgid);
	if (!p)
		return key.context;
	p->tables = 1;
	if (bpf_map_update_elem(&contexts, &key, &made, BPF_ANY))
		count(DROP_CONTEXTS_FULL);
	return key.context;
}

/* cuCtxCreate_v2(ctx *, flags, dev), _v3(ctx *, params, number, flags, dev), _v4(ctx *, params, flags, dev)
 */
static __always_inline void create_enter(struct pt_regs *ctx, u32 version)
{
	struct thread *t = entered(IN_CREATE);

	if (t) {
		t->context_out = PT_REGS_PARM1(ctx);
		t->gpu = version == 2	? PT_REGS_PARM3(ctx)
			 : version == 4 ? PT_REGS_PARM4(ctx)
					: PT_REGS_PARM5(ctx);
	}
}

static __always_inline void create_return(struct pt_regs *ctx)
{
	int result = PT_REGS_RC(ctx);
	struct thread *t = returned(IN_CREATE);

	if (t && result == CUDA_SUCCESS)
		push(t, learn_context(t, 0));
}

/* CUresult cuDevicePrimaryCtxRetain(CUcontext *pctx, CUdevice dev): does not make it current. */
static __always_inline void retain_enter(struct pt_regs *ctx)
{
	u64 out = PT_REGS_PARM1(ctx);
	u32 gpu = PT_REGS_PARM2(ctx);
	struct thread *t = entered(IN_RETAIN);

	if (t) {
		t->context_out = out;
		t->gpu = gpu;
	}
}

static __always_inline void retain_return(struct pt_regs *ctx)
{
	int result = PT_REGS_RC(ctx);
	struct thread *t = returned(IN_RETAIN);

	if (t && result == CUDA_SUCCESS)
		learn_context(t, 1);
}

/* CUresult cuCtxSetCurrent(CUcontext ctx): replaces the top; NULL pops it. */
static __always_inline void set_enter(struct pt_regs *ctx)
{
	u64 context = PT_REGS_PARM1(ctx);
	struct thread *t = entered(IN_SET);

	if (t)
		t->context = context;
}

static __always_inline void set_return(struct pt_regs *ctx)
{
	int result = PT_REGS_RC(ctx);
	struct thread *t = returned(IN_SET);

	if (!t || result != CUDA_SUCCESS)
		return;
	if (t->depth)
		t->depth--;
	if (t->context)
		push(t, t->context);
}

/* CUresult cuCtxPushCurrent_v2(CUcontext ctx) */
static __always_inline void push_enter(struct pt_regs *ctx)
{
	u64 context = PT_REGS_PARM1(ctx);
	struct thread *t = entered(IN_PUSH);

	if (t)
		t->context = context;
}

static __always_inline void push_return(struct pt_regs *ctx)
{
	int result = PT_REGS_RC(ctx);
	struct thread *t = returned(IN_PUSH);

	if (t && result == CUDA_SUCCESS)
		push(t, t->context);
}

/* CUresult cuCtxPopCurrent_v2(CUcontext *pctx) */
static __always_inline void pop_enter(void)
{
	entered(IN_POP);
}

static __always_inline void pop_return(struct pt_regs *ctx)
{
	int result = PT_REGS_RC(ctx);
	struct thread *t = returned(IN_POP);

	if (t && result == CUDA_SUCCESS && t->depth)
		t->depth--;
}

/* CUresult cuCtxDestroy_v2(CUcontext ctx): frees its memory; pops it if it is current in this thread. */
static __always_inline void destroy_enter(struct pt_regs *ctx)
{
	u64 context = PT_REGS_PARM1(ctx);
	struct thread *t = entered(IN_DESTROY);

	if (t)
		t->context = context;
}

static __always_inline void destroy_return(struct pt_regs *ctx)
{
	int result = PT_REGS_RC(ctx);
	struct thread *t = returned(IN_DESTROY);
	struct context_key key = {.tgid = current_tgid()};
	struct sweep what = {.tgid = key.tgid, .scope = ONE_CONTEXT};

	if (!t || result != CUDA_SUCCESS || !t->context)
		return;
	what.context = key.context = t->context;
	if (current_context(t) == t->context)
		t->depth--;
	bpf_map_delete_elem(&contexts, &key);
	bpf_for_each_map_elem(&allocations, sweep_allocation, &what, 0);
}

/* CUresult cuDevicePrimaryCtxReset_v2(CUdevice dev): frees its memory; the context stays usable. */
static __always_inline void reset_enter(struct pt_regs *ctx)
{
	u32 gpu = PT_REGS_PARM1(ctx);
	struct thread *t = entered(IN_RESET);

	if (t)
		t->gpu = gpu;
}

static __always_inline void reset_return(struct pt_regs *ctx)
{
	int result = PT_REGS_RC(ctx);
	struct thread *t = returned(IN_RESET);
	struct sweep what = {.tgid = current_tgid(), .scope = PRIMARY_CONTEXT};

	if (!t || result != CUDA_SUCCESS)
		return;
	what.gpu = t->gpu;
	bpf_for_each_map_elem(&allocations, sweep_allocation, &what, 0);
}
