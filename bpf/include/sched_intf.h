/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The contract with user space (zernel.scheduler.maps), which finds everything here by name in the object's
 * type information. Times are nanoseconds; times of day are CLOCK_MONOTONIC.
 */
#pragma once

#include "vmlinux_min.h"

#define MAX_TENANTS    32 /* tenant 0 has every task that belongs to no other */
#define WEIGHT_NEUTRAL 100

/* What user space may change at any time. Each member holds on its own, so a half-written one does no harm.
 */
struct settings {
	/*
	 * How long a task may run before another gets its turn. Longer means fewer switches and warmer
	 * caches, but a task that wakes while every CPU is busy waits longer. The kernel looks at it on the
	 * timer tick only: below the tick (4 ms at HZ=250) a smaller value changes nothing.
	 */
	u64 slice_ns;
	/*
	 * A queue that was not served for so long is served before all others. Lower helps those that weight
	 * and priority put last; too low, and turns are taken in the order of waiting, whatever the weights.
	 */
	u64 starvation_ns;
	/* How much earlier, or later, one step of priority puts a tenant in the order; its share is the same.
	 */
	u64 priority_step_ns;
	/* Raised when tenants or their cgroups change: what tasks remember of them is then looked up again.
	 */
	u32 generation;
	/* Whether each NUMA node has queues of its own; if 0, all CPUs use those of the first. */
	u32 numa;
	/* Whether there are tenants besides the default one: if 0, no task's cgroup is looked at. */
	u32 tenants;
	/* A CPU notes waits in tenant_use.longest_wait_ns[epoch & 1], which it first clears when this
	 * changes. */
	u32 epoch;
};

/* A tenant's part: CPU time is shared in proportion to the weights of those that want it. */
struct tenant_settings {
	u32 weight;   /* 0: the slot is not in use, and its tasks count to tenant 0 */
	s32 priority; /* -20 to 20: order among tenants */
};

/* What a CPU counts. Sums over all CPUs are what user space shows. */
struct counters {
	u64 idle_hits;	  /* tasks that woke and took an idle CPU at once */
	u64 idle_remote;  /* of those, on another node than before */
	u64 queued_node;  /* tasks put into a node's queue */
	u64 queued_cpu;	  /* tasks put into a CPU's queue: bound to it */
	u64 queued_local; /* per-CPU kernel threads run next on their CPU */
	u64 dispatched;	  /* tasks a CPU took from a queue */
	u64 stolen;	  /* of those, from another node's queue */
	u64 rescues;	  /* of those, because their queue was not served for starvation_ns */
	u64 kept;	  /* slices renewed because the task was still the next */
	u64 tasks;	  /* tasks that joined minus tasks that left; wraps */
};

/* What the tasks of a tenant got on one CPU. */
struct tenant_use {
	u64 run_ns;
	u64 wait_ns; /* ready, but not running */
	u64 longest_wait_ns[2];
	u32 epoch; /* when the present one of the two began to be noted */
};

/* Why the kernel ended this scheduler. `kind` is written last: not 0 means that the rest is there. */
struct exit_record {
	s64 code;
	char reason[128];
	char message[1024];
	char dump[32768];
	u32 kind;
};

enum waits_in { WAITS_NOWHERE, WAITS_IN_NODE, WAITS_IN_CPU };

/* What is remembered of each task; user space reads it through a descriptor of the thread. */
struct task {
	u64 vtime;	/* CPU time received / weight, near the clock of the queue it was last in */
	u64 cgroup;	/* id of its cgroup (v2) when its tenant was looked up */
	u32 generation; /* of the settings then */
	u32 tenant;
	u64 exec_at_start; /* CPU time that it had received when it started to run */
	u64 ready_at;	   /* since when it waits for a CPU; 0 when it does not */
	u32 waits_in;	   /* enum waits_in: the kind of queue */
	u32 queue_index;   /* in queues, or the CPU's number */
};
