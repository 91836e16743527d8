/* SPDX-License-Identifier: GPL-2.0-only */
/* What goes between threads and user space, which sees their process: its hint, and their activity. */
#pragma once

#include "gpu_activity.h"
#include "sched_clock.h"

#define NSEC_PER_TICK 10000000ULL /* of /proc: USER_HZ is 100 */
#define NO_NODE	      (-1)

/* How much at least lies between two notes of what a thread did: looking its process up each time would cost
 * more. */
#define NOTE_PERIOD_NS (4 * NSEC_PER_MSEC)

static __always_inline u64 start_ticks(const struct task_struct *p)
{
	return p->group_leader->start_boottime / NSEC_PER_TICK;
}

/* ---- Hints ---- */

/*
 * Note the phase and the node that the process's hint gives; neutral ones without a hint that still holds.
 * Returns whether these may be others than before.
 */
static __always_inline bool find_hint(const struct task_struct *p, struct task *t, u64 now)
{
	const struct hint *hint;
	u32 tgid;

	if (t->hint_generation != settings.hint_generation) {
		tgid = p->tgid;
		t->hint_generation = settings.hint_generation;
		hint = bpf_map_lookup_elem(&hints, &tgid);
		t->hint_until = 0;
		if (hint && hint->start_ticks == start_ticks(p)) {
			t->hint_until = hint->written_at + settings.hint_lifetime_ns;
			t->phase = hint->phase;
			t->node = hint->node;
		}
	} else if (!t->hint_until || before(now, t->hint_until)) {
		return false;
	}
	if (before(now, t->hint_until))
		return true;
	if (t->hint_until)
		count(stale_hints);
	t->hint_until = 0;
	t->phase = POLICY_UNKNOWN;
	t->node = NO_NODE;
	return true;
}

/* The node whose CPUs the task is to run on, `near` if it has no preference or may not run there. */
static __always_inline u32 preferred_node(const struct task_struct *p, const struct task *t, u32 near)
{
	struct node *node;
	struct bpf_cpumask *members;

	if (!t->hint_until || t->node < 0 || !settings.numa || (u32)t->node == near)
		return near;
	node = node_of(t->node);
	members = node ? node->cpus : NULL;
	if (!members || !bpf_cpumask_intersects((const struct cpumask *)members, p->cpus_ptr))
		return near;
	return t->node;
}

/* ---- Activity ---- */

static __always_inline void latest(u64 *value, u64 other)
{
	if (before(*value, other))
		*value = other;
}

/* Add what the thread did to its process's entry, unless that was done shortly before. */
static __always_inline void send_activity(struct task_struct *p, struct task *t, s32 cpu, u64 now)
{
	bool odd = settings.epoch & 1;
	struct gpu_activity *gpu;
	struct activity *a;
	u32 tgid = p->tgid;

	if ((p->flags & PF_KTHREAD) || before(now, t->unsent.since + NOTE_PERIOD_NS))
		return;
	a = odd ? bpf_map_lookup_elem(&activity_1, &tgid) : bpf_map_lookup_elem(&activity_0, &tgid);
	if (!a) {
		struct activity new = {.start_ticks = start_ticks(p)};

		if (odd) {
			bpf_map_update_elem(&activity_1, &tgid, &new, BPF_NOEXIST);
			a = bpf_map_lookup_elem(&activity_1, &tgid);
		} else {
			bpf_map_update_elem(&activity_0, &tgid, &new, BPF_NOEXIST);
			a = bpf_map_lookup_elem(&activity_0, &tgid);
		}
		if (!a) {
			count(activity_lost);
			return;
		}
	}
	__sync_fetch_and_add(&a->run_ns, t->unsent.run_ns);
	__sync_fetch_and_add(&a->wait_ns, t->unsent.wait_ns);
	__sync_fetch_and_add(&a->sleep_ns, t->unsent.sleep_ns);
	__sync_fetch_and_add(&a->io_wait_ns, t->unsent.io_wait_ns);
	__sync_fetch_and_add(&a->bursts, t->unsent.bursts);
	__sync_fetch_and_add(&a->burst_ns, t->unsent.burst_ns);
	__sync_fetch_and_add(&a->futexes, t->unsent.futexes);
	latest(&a->longest_burst_ns, t->unsent.longest_burst_ns);
	latest(&a->longest_burst_ns, t->burst_ns); /* the one that still lasts */
	a->cgroup = t->cgroup;
	a->tenant = t->tenant;
	a->cpu = cpu;
	a->roles |= 1 << t->role;
	gpu = bpf_task_storage_get(&gpu_activity, p, 0, 0);
	if (gpu) {
		latest(&a->gpu_sync_ns, gpu->sync_ns);
		latest(&a->gpu_launch_ns, gpu->launch_ns);
		latest(&a->nccl_ns, gpu->nccl_ns);
	}
	__builtin_memset(&t->unsent, 0, sizeof(t->unsent));
	t->unsent.since = now;
}
