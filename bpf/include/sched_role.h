/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What a thread does, from how it runs and sleeps and from what the GPU's probes saw of it; and the row of
 * the policy table that follows from that. Decided when it goes to sleep, or has run for too long for what it
 * was.
 */
#pragma once

#include "sched_process.h"
#include "sched_tenant.h"

#define AVERAGE_OVER 4 /* bursts; more would be slower to see that a thread has changed */
#define RECENT_NS    (1000 * NSEC_PER_MSEC) /* steps of training are 4 to 400 ms long */

/* An interactive thread sleeps most of the time: a pipeline's stages, which trade the CPU, are none. */
#define INTERACTIVE_SLEEP_RATIO 3

static __always_inline void average(u64 *average, u64 value)
{
	*average = *average - *average / AVERAGE_OVER + value / AVERAGE_OVER;
}

static __always_inline bool is_recent(u64 then, u64 now)
{
	return then && before(now, then + RECENT_NS);
}

/* What the probes saw of the thread. Most never see a GPU: these are looked up now and then only. */
static __always_inline struct gpu_activity *gpu_of(struct task_struct *p, struct task *t, u64 now)
{
	struct gpu_activity *gpu;

	if (before(now, t->no_gpu_until))
		return NULL;
	gpu = bpf_task_storage_get(&gpu_activity, p, 0, 0);
	if (!gpu)
		t->no_gpu_until = now + NOTE_PERIOD_NS;
	return gpu;
}

static __always_inline u32 role_of(struct task_struct *p, struct task *t, u64 now)
{
	u64 run = t->burst_ns > t->run_avg_ns ? t->burst_ns : t->run_avg_ns;
	struct gpu_activity *gpu = gpu_of(p, t, now);
	bool was_brief = t->role == ROLE_LAUNCHER || t->role == ROLE_INTERACTIVE;
	/* A role is kept a little longer than it takes to get it: else one at the limit would change all the
	 * time. */
	u64 brief = was_brief ? 2 * settings.short_burst_ns : settings.short_burst_ns;

	if (gpu && run <= settings.optimizer_burst_ns && settings.nccl_detection && t->futexes &&
	    is_recent(gpu->nccl_ns, now))
		return ROLE_COLLECTIVE;
	if (gpu && (is_recent(gpu->sync_ns, now) || is_recent(gpu->launch_ns, now))) {
		/* One that prepares much work at a time launches all the same, if it then waits as long. */
		if (run <= brief || (run > settings.optimizer_burst_ns && run <= t->sleep_avg_ns))
			return ROLE_LAUNCHER;
		if (run <= settings.optimizer_burst_ns)
			return ROLE_OPTIMIZER;
	}
	if (t->io_avg_ns * 1000 > (t->run_avg_ns + t->sleep_avg_ns) * settings.io_wait_permille)
		return ROLE_LOADER;
	if (run <= brief && run * (was_brief ? 1 : INTERACTIVE_SLEEP_RATIO) <= t->sleep_avg_ns)
		return ROLE_INTERACTIVE;
	return ROLE_OTHER;
}

/* A role tells more than the phase of the process: that is for threads which have none. */
static __always_inline void choose_policy(struct task *t)
{
	u32 role = t->role;

	t->policy = role == ROLE_LAUNCHER      ? POLICY_LAUNCHER
		    : role == ROLE_OPTIMIZER   ? POLICY_OPTIMIZER_STEP
		    : role == ROLE_COLLECTIVE  ? POLICY_NCCL_COLLECTIVE
		    : role == ROLE_LOADER      ? POLICY_DATA_LOADING
		    : role == ROLE_INTERACTIVE ? POLICY_INTERACTIVE
		    : t->hint_until	       ? t->phase
					       : POLICY_UNKNOWN;
}

static __always_inline void decide_role(struct task_struct *p, struct task *t, u64 now)
{
	u32 role = role_of(p, t, now);

	if (role != t->role)
		count(role_changes);
	t->role = role;
	choose_policy(t);
}

static __always_inline const struct policy *policy_of(const struct task *t)
{
	return &settings.policies[t->policy & (NR_POLICIES - 1)];
}

/* ---- What is noted as a task sleeps, wakes and runs ---- */

static __always_inline void note_sleep(struct task_struct *task, struct task *t, u64 now)
{
	/* One long burst is an accident, such as a hypervisor that ran something else: three are a habit. */
	u64 most = 2 * t->run_avg_ns + settings.short_burst_ns / 4;

	t->unsent.bursts++;
	t->unsent.burst_ns += t->burst_ns;
	t->unsent.futexes += t->futexes;
	latest(&t->unsent.longest_burst_ns, t->burst_ns);
	average(&t->run_avg_ns, t->burst_ns < most ? t->burst_ns : most);
	t->burst_ns = 0;
	decide_role(task, t, now);
	t->futexes = 0;
	t->used_up = false;
	t->slept_at = now;
	t->io_sleep = BPF_CORE_READ_BITFIELD(task, in_iowait);
}

/* The task woke, if it slept: the first call after a sleep counts. */
static __always_inline void note_wake(struct task_struct *p, struct task *t, u64 now)
{
	u64 slept;

	if (!t->slept_at)
		return;
	slept = now - t->slept_at;
	t->unsent.sleep_ns += slept;
	if (t->io_sleep)
		t->unsent.io_wait_ns += slept;
	/* A long sleep says no more than that it was long. */
	if (slept > RECENT_NS)
		slept = RECENT_NS;
	average(&t->sleep_avg_ns, slept);
	average(&t->io_avg_ns, t->io_sleep ? slept : 0);
	if (find_hint(p, t, now))
		choose_policy(t);
	t->slept_at = 0;
	t->woke_at = t->ready_at = now;
}

/* The task ends a slice, or is asked to make way, and could go on. */
static __always_inline void note_slice(struct task_struct *p, struct task *t, u64 now)
{
	t->used_up = t->burst_ns >= settings.slice_ns;
	/* Its turn from the latency queue was one slice long. */
	t->urgent = false;
	if (find_hint(p, t, now))
		choose_policy(t);
	if (t->role != ROLE_OTHER && t->burst_ns > 2 * settings.short_burst_ns)
		decide_role(p, t, now);
}

/* The task runs: note how long after it woke. */
static __always_inline void note_delay(struct task *t, u64 now)
{
	u32 only = 0, role = t->role, bucket = 0;
	struct delays *mine = bpf_map_lookup_elem(&delays, &only);
	u64 delay, rest;

	if (!t->woke_at || !mine || role >= NR_ROLES)
		return;
	delay = now - t->woke_at;
	t->woke_at = 0;
	mine->sum_ns[role] += delay;
	rest = delay / NSEC_PER_USEC;
	/* The number of the highest bit that is set, plus 1. */
	for (u32 step = 16; step; step /= 2) {
		if (rest >> step) {
			rest >>= step;
			bucket += step;
		}
	}
	bucket += rest != 0;
	if (bucket >= DELAY_BUCKETS)
		bucket = DELAY_BUCKETS - 1;
	mine->buckets[role][bucket]++;
}
