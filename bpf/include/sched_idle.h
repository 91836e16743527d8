/* SPDX-License-Identifier: GPL-2.0-only */
/* Finding a CPU for a task that wakes: an idle one near where it ran, or that of the task that woke it. */
#pragma once

#include "sched_role.h"

#define PF_IDLE	   0x2 /* include/linux/sched.h: the task of an idle CPU, and one that ends */
#define PF_EXITING 0x4

static __always_inline bool core_is_idle(s32 cpu)
{
	const struct cpumask *idle_cores = scx_bpf_get_idle_smtmask();
	bool idle = bpf_cpumask_test_cpu(cpu, idle_cores);

	scx_bpf_put_idle_cpumask(idle_cores);
	return idle;
}

/* Claim an idle CPU of the node that the task may use; negative if there is none. */
static __always_inline s32 pick_idle_in_node(struct task_struct *p, u32 node_index, u64 flags)
{
	struct cpu *mine = cpu_of(bpf_get_smp_processor_id());
	struct node *node = node_of(node_index);
	struct bpf_cpumask *members, *both;

	if (nr_nodes == 1 || !settings.numa)
		return scx_bpf_pick_idle_cpu(p->cpus_ptr, flags);
	if (!mine || !node)
		return -1;
	members = node->cpus;
	both = mine->scratch;
	if (!members || !both)
		return -1;
	/* Callers have interrupts off: nobody else uses this CPU's scratch mask meanwhile. */
	bpf_cpumask_and(both, (const struct cpumask *)members, p->cpus_ptr);
	return scx_bpf_pick_idle_cpu((const struct cpumask *)both, flags);
}

/*
 * Claim an idle CPU that the task may use, if there is one on that node, and there `prev_cpu` if it is;
 * negative if there is none at all.
 */
static __always_inline s32 pick_idle(struct task_struct *p, s32 prev_cpu, const struct cpu *previous,
				     u32 node)
{
	bool may_return =
		bpf_cpumask_test_cpu(prev_cpu, p->cpus_ptr) && (!settings.numa || previous->node == node);
	s32 cpu;

	/* A wholly idle core nearby is worth more than a warm cache whose core is half busy. */
	if (smt) {
		if (may_return && core_is_idle(prev_cpu) && scx_bpf_test_and_clear_cpu_idle(prev_cpu))
			return prev_cpu;
		cpu = pick_idle_in_node(p, node, scx_pick_idle_core);
		if (cpu >= 0)
			return cpu;
	}
	if (may_return && scx_bpf_test_and_clear_cpu_idle(prev_cpu))
		return prev_cpu;
	cpu = pick_idle_in_node(p, node, 0);
	if (cpu < 0 && nr_nodes > 1 && settings.numa)
		cpu = scx_bpf_pick_idle_cpu(p->cpus_ptr, 0);
	return cpu;
}

/* How long a waker may go on that said it is about to sleep; then its slice ends. */
#define GIVES_WAY_NS (1000 * NSEC_PER_USEC)

/*
 * May task p follow its waker on this CPU? The waker said that it is about to sleep (as the two ends of a
 * pipe or a socket do), and nothing else waits for this CPU: then p runs sooner here, where what it waited
 * for is in the cache, than on an idle CPU that must be woken first. Some wakers do not sleep, and nobody
 * else can take p from here: one that must run sooner than that is found out takes the idle CPU.
 */
static __always_inline bool may_follow(struct task_struct *p, struct task *t, u32 near,
				       struct task_struct *waker)
{
	u32 this_cpu = bpf_get_smp_processor_id();
	u64 target = policy_of(t)->latency_target_ns;
	struct cpu *here = cpu_of(this_cpu);
	struct node *node = here ? node_of(home(here)) : NULL;

	return node && (here->node == near || !settings.numa) && (!target || target >= GIVES_WAY_NS) &&
	       !node->waiting && !here->bound.waiting && !scx_bpf_dsq_nr_queued(scx_dsq_local) &&
	       !(waker->flags & (PF_IDLE | PF_EXITING)) && bpf_cpumask_test_cpu(this_cpu, p->cpus_ptr);
}
