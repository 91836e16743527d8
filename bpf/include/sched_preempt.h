/* SPDX-License-Identifier: GPL-2.0-only */
/* Taking a CPU from the task that runs there, and how much of that a CPU bears. */
#pragma once

#include "sched_role.h"

#define CPUS_TRIED	    8
#define PREEMPTIONS_AT_ONCE 4 /* those that come together, as the threads that one event wakes */

#define PRIORITY_YIELDS -127 /* of one whose task makes way for any other */

/* Note at the CPU what runs there: as that begins, and as it goes on as something else perhaps. */
static __always_inline void note_runner(struct cpu *here, const struct task *t)
{
	const struct policy *policy = policy_of(t);

	here->tenant = t->tenant;
	here->priority = policy->preemption == PREEMPT_YIELD ? PRIORITY_YIELDS : policy->priority;
}

struct wish {
	u64 now;
	s32 priority;
	u32 tenant;
	bool any_rate;	 /* the rate does not hold for it, nor does it use it up */
	bool own_tenant; /* only from tasks of its own tenant */
	bool denied;
};

/* A task that wakes may take a CPU from lower priorities, if that is its policy, or from those that yield. */
static __always_inline s32 waking_priority(const struct policy *policy)
{
	if (policy->preemption >= PREEMPT_AGGRESSIVE)
		return policy->priority;
	return policy->preemption == PREEMPT_YIELD ? PRIORITY_YIELDS : PRIORITY_YIELDS + 1;
}

/* Is taking this CPU outside of the rate? */
static __always_inline bool is_free(const struct cpu *cpu, const struct wish *wish)
{
	return wish->any_rate || cpu->priority == PRIORITY_YIELDS;
}

/* May the task that the wish is for take this CPU from the one that runs there? */
static __always_inline bool may_preempt(const struct cpu *cpu, struct wish *wish)
{
	u64 period;

	if (cpu->priority >= wish->priority || (wish->own_tenant && cpu->tenant != wish->tenant))
		return false;
	if (is_free(cpu, wish))
		return true;
	period = settings.preemptions_per_s ? 1000 * NSEC_PER_MSEC / settings.preemptions_per_s : 0;
	if (period && !before(wish->now + (PREEMPTIONS_AT_ONCE - 1) * period, cpu->next_preemption))
		return true;
	wish->denied = true;
	return false;
}

/* The CPU is taken: by the rate, that puts the next time off. */
static __always_inline void note_preemption(struct cpu *cpu, const struct wish *wish)
{
	u64 from = before(cpu->next_preemption, wish->now) ? wish->now : cpu->next_preemption;

	if (!is_free(cpu, wish) && settings.preemptions_per_s)
		cpu->next_preemption = from + 1000 * NSEC_PER_MSEC / settings.preemptions_per_s;
	count(preempted);
}

/* What to look through for a CPU to preempt. */
struct hunt {
	struct task_struct *p;
	struct wish wish;
	u32 first;  /* the CPU where the task was */
	u32 second; /* the CPU that wakes it */
	s32 found;
	u32 node;
};

static long try_cpu(u32 i, struct hunt *hunt)
{
	u32 number = i ? hunt->second + i - 1 : hunt->first;
	struct cpu *cpu;

	if (number >= nr_cpus)
		number -= nr_cpus;
	cpu = cpu_of(number);
	if (!cpu || home(cpu) != hunt->node || !bpf_cpumask_test_cpu(number, hunt->p->cpus_ptr) ||
	    !may_preempt(cpu, &hunt->wish))
		return 0;
	note_preemption(cpu, &hunt->wish);
	hunt->found = number;
	return 1;
}

/*
 * Make a CPU stop what it does for task p, which waits in a queue that this CPU serves. The CPU where p was
 * is asked first, then this one, then those after it.
 */
static __always_inline void preempt_for(struct task_struct *p, struct task *t, s32 prev_cpu, u32 node,
					bool own_tenant)
{
	const struct policy *policy = policy_of(t);
	struct hunt hunt = {
		.p = p,
		.wish =
			{
				.now = bpf_ktime_get_ns(),
				.priority = policy->priority,
				.tenant = t->tenant,
				.any_rate = policy->preemption == PREEMPT_LOW_LATENCY,
				.own_tenant = own_tenant,
			},
		.first = prev_cpu,
		.second = bpf_get_smp_processor_id(),
		.found = -1,
		.node = node,
	};

	bpf_loop(CPUS_TRIED, try_cpu, &hunt, 0);
	if (hunt.found >= 0)
		scx_bpf_kick_cpu(hunt.found, scx_kick_preempt);
	else if (hunt.wish.denied)
		count(preempt_denied);
}
