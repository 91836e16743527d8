/* SPDX-License-Identifier: GPL-2.0-only */
/* Virtual time: what CPU time costs a task, and where in a queue it joins. */
#pragma once

#include "sched_state.h"

/*
 * Can this task run on its present CPU only? Before 6.18 every BPF program disables migration while it
 * runs, so a count of 1 says nothing about the current task: it is then taken as free to move, which is
 * safe, since the kernel never moves a task that cannot be.
 */
static __always_inline bool is_bound(const struct task_struct *p)
{
	if (p->nr_cpus_allowed == 1)
		return true;
	if (p->migration_disabled == 1)
		return (u64)p != bpf_get_current_task();
	return p->migration_disabled;
}

/* Virtual time that `ns` of CPU time cost the task. */
static __always_inline u64 charge(const struct task_struct *p, u64 ns)
{
	return ns * WEIGHT_NEUTRAL / p->scx.weight;
}

/*
 * The clock's time. It follows the tasks that start, but never runs slower than 1/CLOCK_DIVISOR of real time,
 * however many tasks of whatever weight wait. Since nothing joins a queue further from its clock than
 * settled() allows, this bounds every wait in a queue that is served.
 *
 * Several CPUs may set a clock at once: set_at is written first and read last, so that at worst a reader is a
 * little behind.
 */
static __always_inline u64 clock_time(const volatile struct clock *clock, u64 now)
{
	u64 vtime = clock->vtime;
	s64 passed = now - clock->set_at;

	return passed > 0 ? vtime + passed / CLOCK_DIVISOR : vtime;
}

static __always_inline void clock_advance(volatile struct clock *clock, u64 vtime, u64 now)
{
	if (before(clock_time(clock, now), vtime)) {
		clock->set_at = now;
		clock->vtime = vtime;
	}
}

/*
 * Return `vtime`, of task p, brought near the clock of the queue that it joins.
 *
 * Not more than a slice behind, so that sleeping earns one slice at most; for a heavy task, what a slice
 * costs it, since its virtual time passes slowly and others of its kind would wait long for it. Not further
 * ahead than a slice costs it, so that a task from a queue with another clock does not wait for that
 * difference; and not further than the starvation bound, for the sake of the lightest.
 */
static __always_inline u64 settled(const struct task_struct *p, u64 vtime, const struct clock *clock, u64 now)
{
	u64 time = clock_time(clock, now);
	u64 slice = settings.slice_ns;
	u64 cost = charge(p, slice);
	u64 earliest = time - (cost < slice ? cost : slice);
	u64 latest = time + (cost < settings.starvation_ns ? cost : settings.starvation_ns);

	if (before(vtime, earliest))
		return earliest;
	if (before(latest, vtime))
		return latest;
	return vtime;
}
