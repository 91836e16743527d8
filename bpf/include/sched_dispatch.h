/* SPDX-License-Identifier: GPL-2.0-only */
/* Which of the queues that a CPU serves comes next, and whether the task that runs there goes on instead. */
#pragma once

#include "sched_queue.h"

/* The task that runs here, which wants to go on; it is in no queue. */
struct candidate {
	bool there;
	bool bound;
	bool yields; /* to all others */
	u32 tenant;
	u64 order;
};

/*
 * Serve the CPU's own queue, or its node's. Returns true if a task was found; `*keep` if it is the running
 * one.
 */
static __always_inline bool serve_bound(s32 cpu, const struct candidate *prev, bool *keep)
{
	if (prev->there && prev->bound && !head_is_before(CPU_QUEUE(cpu), prev->order)) {
		*keep = true;
		return true;
	}
	return take_bound(cpu);
}

static __always_inline bool serve_node(const struct view *view, const struct candidate *prev, bool *keep)
{
	if (!view->any)
		return false;
	if (prev->there && !prev->bound && !prev->yields && prev->tenant == view->tenant &&
	    !head_is_before(NODE_QUEUE(view->node, view->tenant), prev->order)) {
		*keep = true;
		return true;
	}
	/* What the first tenant has may not run here. */
	return take(view->node, view->tenant) || take_any(view->node, TENANT_SLOTS);
}

static __always_inline bool serve_urgent(const struct view *view)
{
	if (!(view->waiting >> LATENCY_SLOT & 1) || !take(view->node, LATENCY_SLOT))
		return false;
	count(latency_runs);
	return true;
}

/* The latency queue takes turns with others when it had its part: it would wait for all of them else. */
static __always_inline bool urgent_waited(const struct view *view)
{
	struct queue *queue = queue_of(view->node, LATENCY_SLOT);

	return queue && before(queue->served_at + settings.slice_ns, view->now);
}

/* Nobody waits but those that yield, and those that had their part of the CPU's time. */
static __always_inline bool serve_last(const struct view *view, const struct candidate *prev, bool *keep)
{
	if (serve_urgent(view)) {
		count(latency_over);
		return true;
	}
	if (!(view->waiting >> LOW_SLOT & 1))
		return false;
	if (prev->there && !head_is_before(NODE_QUEUE(view->node, LOW_SLOT), prev->order)) {
		*keep = true;
		return true;
	}
	if (!take(view->node, LOW_SLOT))
		return false;
	count(low_runs);
	return true;
}

/*
 * Is the CPU's own queue to be served before its node's? The tenant that got less decides, and within one
 * tenant they take turns.
 */
static __always_inline bool bound_is_first(s32 cpu, struct cpu *here, const struct candidate *prev,
					   const struct view *view)
{
	bool first;
	u32 tenant;
	u64 order;

	if (!here->bound.waiting && !(prev->there && prev->bound))
		return false;
	if (!view->any)
		return true;
	tenant = head_tenant(CPU_QUEUE(cpu));
	if (tenant == NO_TENANT && !(prev->there && prev->bound))
		return false;
	if (tenant == NO_TENANT)
		tenant = prev->tenant;
	tenant_at(tenant)->waited_at = view->now;
	if (tenant == view->tenant) {
		first = here->bound_first;
		here->bound_first = !first;
		return first;
	}
	order = tenant_order(tenant);
	return before(order, view->order);
}

/* Serve the queue, of the node or the CPU, that was not served for too long. */
static __always_inline bool rescue(const struct view *view, s32 cpu, struct cpu *here)
{
	u64 waits_since = here->bound.served_at;
	bool bound = here->bound.waiting && before(waits_since + settings.starvation_ns, view->now) &&
		     !(view->starving && before(view->served_at, waits_since));

	if (bound ? !take_bound(cpu) : !view->starving || !take(view->node, view->starved))
		return false;
	count(rescues);
	return true;
}

/* ---- Other nodes ---- */

/*
 * Each node orders its own tasks, so each CPU looks at the other nodes now and then too. Sooner would be
 * fairer in the short run, but moves tasks away from their memory more often.
 */
#define BALANCE_PERIOD_NS (10 * NSEC_PER_MSEC)

/* How much less a tenant that waits elsewhere must have got than the first one here, as time of one CPU. */
#define BALANCE_MARGIN_NS (10 * NSEC_PER_MSEC)

struct balance {
	u64 now;
	u32 own;
	u32 tenant; /* the first here, its place in the order, and how many of its tasks wait here */
	u64 order;
	u32 waiting;
	u32 cpus;
	bool found;
};

static long balance_with(u32 i, struct balance *here)
{
	u32 other = here->own + i + 1 < nr_nodes ? here->own + i + 1 : here->own + i + 1 - nr_nodes;
	struct node *node = node_of(other);
	struct view view = {};
	struct queue *queue;
	u64 margin;

	look(other, here->now, &view);
	if (!node || !view.any)
		return 0;
	if (view.tenant == here->tenant) {
		queue = queue_of(other, view.tenant);
		/* Moving one must not make the other node the one with less to do. */
		if (!queue || queue->waiting * here->cpus <= (here->waiting + 1) * node->nr_cpus)
			return 0;
	} else {
		margin = BALANCE_MARGIN_NS * WEIGHT_NEUTRAL / weight_of(here->tenant);
		if (!before(view.order + margin, here->order))
			return 0;
	}
	if (!take(other, view.tenant))
		return 0;
	here->found = true;
	return 1;
}

/* Take a task from a node where its tenant's tasks wait more than those here, if it is time to look. */
static __always_inline bool balance(s32 cpu, struct cpu *here, const struct view *view,
				    const struct candidate *prev)
{
	struct balance balance = {
		.now = view->now, .own = view->node, .tenant = view->tenant, .order = view->order};
	struct node *node = node_of(view->node);
	struct queue *queue;

	if (nr_nodes < 2 || !settings.numa || !node ||
	    before(view->now, here->balanced_at + BALANCE_PERIOD_NS))
		return false;
	here->balanced_at = view->now;
	if (!view->any) {
		balance.tenant = prev->there ? prev->tenant : head_tenant(CPU_QUEUE(cpu));
		if (balance.tenant == NO_TENANT)
			return false;
		balance.order = tenant_order(balance.tenant);
	}
	queue = queue_of(view->node, balance.tenant);
	if (!queue)
		return false;
	balance.waiting = queue->waiting;
	balance.cpus = node->nr_cpus;
	bpf_loop(nr_nodes - 1, balance_with, &balance, 0);
	if (balance.found)
		count(stolen);
	return balance.found;
}

/* What a CPU looks for at other nodes. */
struct steal {
	u64 now;
	u32 own;   /* its node */
	bool busy; /* has it a task that could go on? */
	bool found;
};

static long steal_from(u32 i, struct steal *steal)
{
	u32 other = steal->own + i + 1 < nr_nodes ? steal->own + i + 1 : steal->own + i + 1 - nr_nodes;
	struct node *node = node_of(other);
	struct view view = {};

	if (!node || !node->waiting)
		return 0;
	look(other, steal->now, &view);
	if (steal->busy && (!view.any || scx_bpf_dsq_nr_queued(NODE_QUEUE(other, view.tenant)) < 2))
		return 0;
	if (!(view.any && take(other, view.tenant)) && !take_any(other, ALL_SLOTS))
		return 0;
	count(stolen);
	steal->found = true;
	return 1;
}

/*
 * Take a task from another node. An idle CPU takes any: waiting is worse than a remote memory access. A
 * busy one leaves a single waiting task to its own node, so that two nodes do not trade one task for ever.
 */
static __always_inline bool steal(u32 own, bool busy)
{
	struct steal steal = {.own = own, .busy = busy};

	if (nr_nodes < 2)
		return false;
	steal.now = bpf_ktime_get_ns();
	bpf_loop(nr_nodes - 1, steal_from, &steal, 0);
	return steal.found;
}
