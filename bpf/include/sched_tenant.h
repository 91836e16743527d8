/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Tenants: to which one a task belongs, and how they share the host.
 *
 * Each tenant has a virtual time, CPU time received by its tasks on all CPUs divided by its weight, and the
 * one with the least is served first: how many tasks a tenant has buys it nothing.
 */
#pragma once

#include "sched_clock.h"

struct tenant {
	u64 vtime;
	u64 waited_at; /* when it was last seen to wait for a certain CPU */
} __attribute__((aligned(64)));

struct tenant tenants[MAX_TENANTS];

/*
 * The least virtual time of those tenants that run or wait, when last looked at. One that ran a moment ago
 * does not count: if it needs little, and that again and again, it would hold the clock, and those that run
 * would all be as far ahead of it as they may: their shares would no longer follow their weights.
 */
struct clock tenant_clock;

/* How many CPUs are online: when that changes, the kernel has the scheduler loaded anew. */
u32 nr_online;

#define CLOCK_PERIOD_NS (500 * NSEC_PER_USEC)

/* For how long a tenant is taken to wait for a certain CPU: more than a slice can last. */
#define IDLE_AFTER_NS (100 * NSEC_PER_MSEC)

/*
 * How far a tenant's virtual time may be from the clock, as time in which the whole host works for it. What
 * it left unused it cannot claim later, but for the first; and what it used beyond its share while nobody
 * else wanted it is not held against it, but for the second.
 */
#define MAX_LAG_NS  (6 * NSEC_PER_MSEC)
#define MAX_LEAD_NS (100 * NSEC_PER_MSEC)

static __always_inline struct tenant *tenant_at(u32 index)
{
	return &tenants[index & (MAX_TENANTS - 1)];
}

static __always_inline u32 weight_of(u32 index)
{
	u32 weight = tenant_settings[index & (MAX_TENANTS - 1)].weight;

	return weight ? weight : WEIGHT_NEUTRAL;
}

/* ---- To which tenant a task belongs ---- */

struct ancestors {
	u64 leaf; /* address of a struct cgroup */
	u32 level;
	u32 tenant;
};

/* Look at the ancestor `up` levels above. */
static long look_up(u32 up, struct ancestors *of)
{
	u32 level = of->level - up, *found;
	struct cgroup *ancestor = NULL;
	u64 id;

	if (up > of->level)
		return 1;
	bpf_probe_read_kernel(&ancestor, sizeof(ancestor),
			      (const char *)of->leaf + bpf_core_field_offset(struct cgroup, ancestors) +
				      level * sizeof(ancestor));
	id = BPF_CORE_READ(ancestor, kn, id);
	found = bpf_map_lookup_elem(&tenant_cgroups, &id);
	if (!found || *found >= MAX_TENANTS || !tenant_settings[*found & (MAX_TENANTS - 1)].weight)
		return 0;
	of->tenant = *found;
	return 1;
}

/*
 * Note the tenant of task p: that of its cgroup or of the nearest ancestor which has one, else the default.
 *
 * A new task is in its parent's cgroup at first, or in none, until it has been made; and tasks are moved. So
 * this looks at each wake whether the cgroup is another than before.
 */
static __always_inline void find_tenant(struct task_struct *p, struct task *t)
{
	struct ancestors of = {};
	const struct cgroup *cgroup;
	u64 id;

	if (!settings.tenants) {
		t->tenant = 0;
		return;
	}
	cgroup = p->cgroups->dfl_cgrp;
	id = cgroup->kn->id;
	if (t->cgroup == id && t->generation == settings.generation)
		return;
	of.leaf = (u64)cgroup;
	of.level = cgroup->level;
	t->generation = settings.generation;
	t->cgroup = id;
	bpf_loop(MAX_CGROUP_DEPTH, look_up, &of, 0);
	t->tenant = of.tenant;
}

/* ---- How tenants share ---- */

struct active {
	u64 now;
	u64 wanting; /* bit per tenant: its tasks run or wait */
	u64 least;   /* virtual time */
	bool any;
};

static long collect_cpu(u32 number, struct active *all)
{
	struct cpu *cpu = cpu_of(number);

	if (cpu && cpu->priority != PRIORITY_IDLE)
		all->wanting |= 1ULL << (cpu->tenant & (MAX_TENANTS - 1));
	return 0;
}

static long collect_node(u32 index, struct active *all)
{
	struct node *node = node_of(index);

	if (node)
		all->wanting |= node->waiting;
	return 0;
}

static long collect_tenant(u32 index, struct active *all)
{
	const struct tenant *tenant = tenant_at(index);

	if (!(all->wanting >> index & 1) && before(tenant->waited_at + IDLE_AFTER_NS, all->now))
		return 0;
	if (!all->any || before(tenant->vtime, all->least)) {
		all->least = tenant->vtime;
		all->any = true;
	}
	return 0;
}

static __always_inline void advance_tenant_clock(u64 now)
{
	struct active all = {.now = now};

	if (before(now, tenant_clock.set_at + CLOCK_PERIOD_NS))
		return;
	tenant_clock.set_at = now;
	/* One tenant shares with nobody: no need to look at every CPU of a large host. */
	if (!settings.tenants) {
		tenant_clock.vtime = tenant_at(0)->vtime;
		return;
	}
	bpf_loop(nr_nodes, collect_node, &all, 0);
	bpf_loop(nr_cpus, collect_cpu, &all, 0);
	bpf_loop(MAX_TENANTS, collect_tenant, &all, 0);
	if (all.any && before(tenant_clock.vtime, all.least))
		tenant_clock.vtime = all.least;
}

/* Return the tenant's virtual time, brought near the clock first. */
static __always_inline u64 tenant_time(u32 index)
{
	struct tenant *tenant = tenant_at(index);
	u32 weight = weight_of(index);
	u64 earliest = tenant_clock.vtime - MAX_LAG_NS * nr_online * WEIGHT_NEUTRAL / weight;
	u64 latest = tenant_clock.vtime + MAX_LEAD_NS * nr_online * WEIGHT_NEUTRAL / weight;
	u64 vtime = tenant->vtime;

	if (before(vtime, earliest))
		tenant->vtime = vtime = earliest;
	else if (before(latest, vtime))
		tenant->vtime = vtime = latest;
	return vtime;
}

/* Where the tenant stands in the order; priority moves that, not its share. */
static __always_inline u64 tenant_order(u32 index)
{
	s32 priority = tenant_settings[index & (MAX_TENANTS - 1)].priority;
	u64 step = settings.priority_step_ns * WEIGHT_NEUTRAL / weight_of(index);

	return tenant_time(index) - priority * step;
}

/*
 * Had the tenant clearly more than its share of late? With some slack, since all but one of those that share
 * are ahead of the clock at any time.
 */
static __always_inline bool is_over_share(u32 index)
{
	u64 slack = MAX_LAG_NS * nr_online * WEIGHT_NEUTRAL / weight_of(index);

	return before(tenant_clock.vtime + slack, tenant_time(index));
}

/* ---- The latency queue's part of a CPU ---- */

#define URGENT_BUCKET_NS (10 * NSEC_PER_MSEC) /* how much it may get at once */
/* More than that is not held against it: at 1%, the least but none at all, it wears off in 10 s. */
#define URGENT_MAX_NS	    (10 * URGENT_BUCKET_NS)
#define URGENT_FORGOTTEN_NS (1000 * URGENT_MAX_NS)

/* What the latency queue got beyond its part of this CPU; that wears off as time passes. */
static __always_inline u64 urgent_excess(const struct cpu *cpu, u64 now)
{
	s64 since = now - cpu->urgent_at;
	u64 earned;

	if (since < 0)
		since = 0;
	if (since > (s64)URGENT_FORGOTTEN_NS)
		since = URGENT_FORGOTTEN_NS;
	earned = since * settings.latency_budget_permille / 1000;
	return cpu->urgent_ns > earned ? cpu->urgent_ns - earned : 0;
}

static __always_inline bool may_serve_urgent(const struct cpu *cpu, u64 now)
{
	return urgent_excess(cpu, now) < URGENT_BUCKET_NS;
}

/* May a task of that policy wait there? Aggressive ones, which load data, leave half of it to the others. */
static __always_inline bool may_be_urgent(const struct policy *policy, const struct cpu *cpu, u64 now)
{
	u64 most = policy->preemption == PREEMPT_AGGRESSIVE ? URGENT_BUCKET_NS / 2 : URGENT_BUCKET_NS;

	return policy->preemption >= PREEMPT_AGGRESSIVE && policy->latency_target_ns &&
	       urgent_excess(cpu, now) < most;
}

/* ---- What is noted as a task runs ---- */

/* Charge the task, its tenant and the latency queue what the task ran since it was last charged. */
static __always_inline void charge_run(struct task_struct *p, struct task *t, struct cpu *here, u64 now)
{
	u64 received = p->se.sum_exec_runtime;
	u64 ran = received - t->exec_at_start;
	struct tenant *tenant = tenant_at(t->tenant);
	struct tenant_use *use = bpf_map_lookup_elem(&tenant_use, &t->tenant);

	t->exec_at_start = received;
	t->vtime += charge(p, ran);
	t->burst_ns += ran;
	t->unsent.run_ns += ran;
	if (t->urgent) {
		here->urgent_ns = urgent_excess(here, now) + ran;
		if (here->urgent_ns > URGENT_MAX_NS)
			here->urgent_ns = URGENT_MAX_NS;
		here->urgent_at = now;
	}
	__sync_fetch_and_add(&tenant->vtime, ran * WEIGHT_NEUTRAL / weight_of(t->tenant));
	if (use)
		use->run_ns += ran;
}

/* Note how long the task waited for the CPU that it has now. */
static __always_inline void note_wait(struct task *t, u64 now)
{
	struct tenant_use *use = bpf_map_lookup_elem(&tenant_use, &t->tenant);
	s64 waited = now - t->ready_at;
	u32 epoch = settings.epoch, slot = epoch & 1;

	if (t->ready_at && waited > 0) {
		t->unsent.wait_ns += waited;
		if (use) {
			use->wait_ns += waited;
			if (use->epochs[slot] != epoch)
				use->longest_wait_ns[slot] = 0;
			use->epochs[slot] = epoch;
			if ((u64)waited > use->longest_wait_ns[slot])
				use->longest_wait_ns[slot] = waited;
		}
	}
	t->ready_at = 0;
}
