/* SPDX-License-Identifier: GPL-2.0-only */
/* Queues: putting tasks in, seeing which are due, taking tasks out. */
#pragma once

#include "sched_preempt.h"

/* ---- Who waits where ---- */

/*
 * Queues are counted here, apart from the kernel: it inserts a task only after enqueue() has returned, so
 * that a queue which it says is empty may be about to get one. A task counts from enqueue() on until it runs,
 * or is enqueued anew, or leaves the scheduler.
 */
static __always_inline void join_queue(struct queue *queue, struct task *t, u32 kind, u32 index, u64 now)
{
	t->waits_in = kind;
	t->queue_index = index;
	if (!queue->waiting)
		queue->served_at = now;
	__sync_fetch_and_add(&queue->waiting, 1);
}

static __always_inline void leave_queue(struct task *t)
{
	u32 kind = t->waits_in, index = t->queue_index;
	struct queue *queue;
	struct node *node;
	struct cpu *cpu;
	u64 bit;

	t->waits_in = WAITS_NOWHERE;
	if (kind == WAITS_IN_CPU) {
		cpu = cpu_of(index);
		if (cpu)
			__sync_fetch_and_sub(&cpu->bound.waiting, 1);
	} else if (kind == WAITS_IN_NODE) {
		queue = bpf_map_lookup_elem(&queues, &index);
		node = node_of(index / NR_SLOTS);
		if (!queue || !node || __sync_fetch_and_sub(&queue->waiting, 1) != 1)
			return;
		/* Whoever joins counts before it sets the bit: a bit that is cleared wrongly is seen here. */
		bit = 1ULL << index % NR_SLOTS;
		__sync_fetch_and_and(&node->waiting, ~bit);
		if (*(volatile u32 *)&queue->waiting)
			__sync_fetch_and_or(&node->waiting, bit);
	}
}

/* Where the task stands in its tenant's order; priority moves that, not its share. */
static __always_inline u64 task_order(const struct task *t)
{
	return t->vtime - policy_of(t)->priority * settings.priority_step_ns;
}

/*
 * In which of its node's queues a task waits. The latency queue is for those who woke and whose tenant has
 * not had more than its share: else a tenant of many short bursts could take the CPU from all others. Nor is
 * it for more than its part of the CPU where the task was: beyond that virtual time decides.
 */
static __always_inline u32 slot_for(const struct task *t, const struct cpu *cpu, u64 now)
{
	const struct policy *policy = policy_of(t);

	if (policy->preemption == PREEMPT_YIELD && t->used_up)
		return LOW_SLOT;
	if (t->woke_at && may_be_urgent(policy, cpu, now) && !is_over_share(t->tenant))
		return LATENCY_SLOT;
	return t->tenant;
}

/* Put task p into a queue of that node. */
static __always_inline void enqueue_node(struct task_struct *p, struct task *t, u32 index, u32 slot,
					 u64 enq_flags, u64 now)
{
	struct node *node = node_of(index);
	struct queue *queue = queue_of(index, slot);
	u64 order;

	/* Cannot happen: the loader made both. The task would be lost, so it goes next on its CPU. */
	if (!node || !queue) {
		dsq_insert(p, scx_dsq_local, settings.slice_ns, enq_flags);
		return;
	}
	count(queued_node);
	if (slot == LATENCY_SLOT) {
		order = t->woke_at + policy_of(t)->latency_target_ns;
	} else {
		t->vtime = settled(p, t->vtime, &queue->clock, now);
		order = task_order(t);
	}
	dsq_insert_vtime(p, NODE_QUEUE(index, slot), settings.slice_ns, order, enq_flags);
	join_queue(queue, t, WAITS_IN_NODE, index * NR_SLOTS + slot, now);
	__sync_fetch_and_or(&node->waiting, 1ULL << slot);
}

/* Put a task that is bound to `cpu` where it competes with the others bound there. */
static __always_inline void enqueue_bound(struct task_struct *p, struct task *t, s32 cpu, struct cpu *here,
					  u64 enq_flags, u64 now)
{
	count(queued_cpu);
	t->vtime = settled(p, t->vtime, &here->bound.clock, now);
	dsq_insert_vtime(p, CPU_QUEUE(cpu), settings.slice_ns, task_order(t), enq_flags);
	join_queue(&here->bound, t, WAITS_IN_CPU, cpu, now);
}

/*
 * Functions that are not static are verified once, and not for each call: that is most of the time which
 * loading takes.
 */

/* ---- Seeing what is due ---- */

/* Is the first task of the queue due before `order`? False for an empty queue. */
__noinline bool head_is_before(u64 queue, u64 order)
{
	struct bpf_iter_scx_dsq it;
	struct task_struct *first = NULL;
	bool result = false;

	if (!bpf_iter_scx_dsq_new(&it, queue, 0))
		first = bpf_iter_scx_dsq_next(&it);
	if (first)
		result = before(first->scx.dsq_vtime, order);
	bpf_iter_scx_dsq_destroy(&it);
	return result;
}

#define NO_TENANT MAX_TENANTS

/* The tenant of the first task of the queue; NO_TENANT for an empty queue. */
__noinline u32 head_tenant(u64 queue)
{
	struct bpf_iter_scx_dsq it;
	struct task_struct *first = NULL;
	u32 result = NO_TENANT;
	struct task *t;

	if (!bpf_iter_scx_dsq_new(&it, queue, 0))
		first = bpf_iter_scx_dsq_next(&it);
	if (first) {
		t = task_of(first);
		result = t ? t->tenant : 0;
	}
	bpf_iter_scx_dsq_destroy(&it);
	return result;
}

#define TENANT_SLOTS ((1ULL << MAX_TENANTS) - 1)

/* A look at a node's queues. */
struct view {
	u64 waiting;
	u64 now;
	u32 node;
	bool any;   /* is there a tenant that waits, or that `prev` belongs to? */
	u32 tenant; /* the first in the order of those */
	u64 order;
	bool starving; /* was a queue not served for too long? */
	u32 starved;   /* the slot of the one that was served least recently */
	u64 served_at;
};

/* Note the slot if it is the one that was served least recently, and that too long ago. */
static __always_inline void note_starved(struct view *view, u32 slot)
{
	struct queue *queue = queue_of(view->node, slot);

	if (queue && before(queue->served_at + settings.starvation_ns, view->now) &&
	    (!view->starving || before(queue->served_at, view->served_at))) {
		view->starving = true;
		view->starved = slot;
		view->served_at = queue->served_at;
	}
}

static long view_tenant(u32 tenant, struct view *view)
{
	u64 waiting = (view->waiting & TENANT_SLOTS) >> tenant, order;

	if (!waiting)
		return 1;
	if (!(waiting & 1))
		return 0;
	order = tenant_order(tenant);
	if (!view->any || before(order, view->order)) {
		view->any = true;
		view->tenant = tenant;
		view->order = order;
	}
	note_starved(view, tenant);
	return 0;
}

/* Look at the queues of a node. */
__noinline int look(u32 index, u64 now, struct view *result)
{
	struct node *node = node_of(index);
	struct view view = {.node = index, .now = now};

	if (!result)
		return 0;
	view.waiting = node ? node->waiting : 0;
	bpf_loop(MAX_TENANTS, view_tenant, &view, 0);
	if (view.waiting >> LATENCY_SLOT & 1)
		note_starved(&view, LATENCY_SLOT);
	if (view.waiting >> LOW_SLOT & 1)
		note_starved(&view, LOW_SLOT);
	*result = view;
	return 0;
}

/* ---- Taking out ---- */

/* Take the first task of the node's queue that may run here; false if there is none. */
__noinline bool take(u32 index, u32 slot)
{
	struct queue *queue = queue_of(index, slot);

	if (!queue || !dsq_move_to_local(NODE_QUEUE(index, slot)))
		return false;
	queue->served_at = bpf_ktime_get_ns();
	count(dispatched);
	return true;
}

__noinline bool take_bound(u32 cpu)
{
	struct cpu *here = cpu_of(cpu);

	if (!here || !here->bound.waiting || !dsq_move_to_local(CPU_QUEUE(cpu)))
		return false;
	here->bound.served_at = bpf_ktime_get_ns();
	count(dispatched);
	return true;
}

struct search {
	u64 waiting;
	u32 node;
	bool found;
};

static long take_slot(u32 slot, struct search *search)
{
	if (!(search->waiting >> slot))
		return 1;
	if (!(search->waiting >> slot & 1) || !take(search->node, slot))
		return 0;
	search->found = true;
	return 1;
}

#define ALL_SLOTS (~0ULL)

/* Take a task from whichever of these queues of the node has one that may run here. */
__noinline bool take_any(u32 index, u64 slots)
{
	struct node *node = node_of(index);
	struct search search = {.node = index};

	if (!node)
		return false;
	search.waiting = node->waiting & slots;
	bpf_loop(NR_SLOTS, take_slot, &search, 0);
	return search.found;
}
