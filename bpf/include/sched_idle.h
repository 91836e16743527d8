/* SPDX-License-Identifier: GPL-2.0-only */
/* Finding an idle CPU near where a task ran. */
#pragma once

#include "sched_state.h"

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
