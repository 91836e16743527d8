/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The contract with user space (zernel.scheduler.maps), which finds everything here by name in the object's
 * type information. Times are nanoseconds; times of day are CLOCK_MONOTONIC.
 */
#pragma once

#include "vmlinux_min.h"

/* What a thread does, as it shows itself here. */
enum role {
	ROLE_OTHER,
	ROLE_LAUNCHER,	  /* gives the GPU work, in short bursts */
	ROLE_OPTIMIZER,	  /* works for a little longer beside the GPU */
	ROLE_COLLECTIVE,  /* waits for, and serves, other ranks */
	ROLE_LOADER,	  /* waits for storage much of its time */
	ROLE_INTERACTIVE, /* short bursts, far apart; nothing seen of a GPU */
	NR_ROLES,
};

/* Rows of the policy table: those of what a process does, which user space finds out, and of two roles. */
enum policy_row {
	POLICY_UNKNOWN,
	POLICY_DATA_LOADING,
	POLICY_GPU_COMPUTE,
	POLICY_NCCL_COLLECTIVE,
	POLICY_OPTIMIZER_STEP,
	POLICY_LAUNCHER,
	POLICY_INTERACTIVE,
	NR_POLICIES = 8, /* a power of two: the verifier then sees that an index is within */
};

enum preemption {
	PREEMPT_STANDARD,    /* waits its turn */
	PREEMPT_YIELD,	     /* goes behind all others once it has used a slice up; may be preempted by any */
	PREEMPT_AGGRESSIVE,  /* takes a CPU from a lower priority when it wakes, as often as the rate allows;
				waits in the latency queue while half of that's part is left */
	PREEMPT_PREEMPTIVE,  /* the same, with the whole part */
	PREEMPT_LOW_LATENCY, /* the same, at any rate */
};

struct policy {
	s32 priority; /* -20 to 20: order, not share */
	enum preemption preemption;
	u64 latency_target_ns; /* the latency queue is in order of these; 0: never goes there */
};

#define MAX_TENANTS    32 /* tenant 0 has every task that belongs to no other */
#define WEIGHT_NEUTRAL 100

/* What user space may change at any time. Each member holds on its own: one half-written does no harm. */
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
	/*
	 * How much earlier, or later, one step of priority puts a task or a tenant in the order; its share is
	 * the same.
	 */
	u64 priority_step_ns;
	/* Bursts of running up to this are short: those of launchers and interactive threads. */
	u64 short_burst_ns;
	/* Bursts up to this, of a thread that works with the GPU, are an optimizer's. */
	u64 optimizer_burst_ns;
	/* A thread that waits for storage for more than this part of its time is a loader. */
	u32 io_wait_permille;
	/* The part of a CPU's time that may go to the latency queue while others wait. */
	u32 latency_budget_permille;
	/* How often a CPU may be taken from the task that it runs; 0 for never. */
	u32 preemptions_per_s;
	/* Whether NCCL calls and futex waits make a thread one of a collective. */
	u32 nccl_detection;
	/* Raised when tenants or their cgroups change: what tasks remember of them is looked up again. */
	u32 generation;
	/* Whether each NUMA node has queues of its own; if 0, all CPUs use those of the first. */
	u32 numa;
	/* Whether there are tenants besides the default one: if 0, no task's cgroup is looked at. */
	u32 tenants;
	/* A CPU notes waits in tenant_use.longest_wait_ns[epoch & 1], which it clears first when this
	 * changed. */
	u32 epoch;
	/* Raised when hints change; and how long a hint holds after it was written. */
	u32 hint_generation;
	u64 hint_lifetime_ns;
	struct policy policies[NR_POLICIES]; /* by enum policy_row */
};

/* A tenant's part: CPU time is shared in proportion to the weights of those that want it. */
struct tenant_settings {
	u32 weight;   /* 0: the slot is not in use, and its tasks count to tenant 0 */
	s32 priority; /* -20 to 20: order among tenants */
};

/* What user space found out about a process: for those of its threads that have no role of their own. */
struct hint {
	u64 start_ticks; /* when it started, as /proc tells: another process of that number is not meant */
	u64 written_at;
	enum policy_row phase;
	s32 node; /* index of the node that its GPU, or its memory, is on; -1 for none */
};

/* What the threads of a process did in one epoch. */
struct activity {
	u64 start_ticks;
	u64 run_ns;
	u64 wait_ns;	/* ready, but not running */
	u64 sleep_ns;	/* sleeps that ended */
	u64 io_wait_ns; /* of that, for storage */
	u64 bursts;	/* times that one ran and then slept */
	u64 burst_ns;	/* how long those were, and the longest, with those that last */
	u64 longest_burst_ns;
	u64 futexes;	 /* waits for a futex, where these are watched */
	u64 gpu_sync_ns; /* the latest of its threads, where probes saw any: see gpu_activity.h */
	u64 gpu_launch_ns;
	u64 nccl_ns;
	u64 cgroup; /* of the thread that was noted last, as are the next two */
	u32 tenant;
	u32 cpu;
	u32 roles; /* bit per enum role that a thread of it had */
};

/* What a CPU counts. Sums over all CPUs are what user space shows. */
struct counters {
	u64 idle_hits;	    /* tasks that woke and took an idle CPU at once */
	u64 idle_remote;    /* of those, on another node than before */
	u64 queued_node;    /* tasks put into a node's queue */
	u64 queued_cpu;	    /* tasks put into a CPU's queue: bound to it */
	u64 queued_local;   /* per-CPU kernel threads run next on their CPU */
	u64 dispatched;	    /* tasks a CPU took from a queue */
	u64 stolen;	    /* of those, from another node's queue */
	u64 rescues;	    /* of those, because their queue was not served for starvation_ns */
	u64 latency_runs;   /* of those, from the latency queue */
	u64 latency_over;   /* of those, beyond the budget: nobody else waited, or its turn had come */
	u64 low_runs;	    /* of those, from the queue of those that yield */
	u64 preempted;	    /* CPUs taken from a running task for one that woke */
	u64 preempt_denied; /* not taken, because of the rate */
	u64 stale_hints;    /* hints found to be too old */
	u64 activity_lost;  /* times that what a process did could not be noted: its table was full */
	u64 role_changes;   /* threads whose role became another */
	u64 kept;	    /* slices renewed because the task was still the next */
	u64 tasks;	    /* tasks that joined minus tasks that left; wraps */
};

#define DELAY_BUCKETS 24

/* From waking up to running, on one CPU. Bucket n counts those below 2^n us, the last also all longer ones.
 */
struct delays {
	u64 buckets[NR_ROLES][DELAY_BUCKETS];
	u64 sum_ns[NR_ROLES];
};

/* What the tasks of a tenant got on one CPU. */
struct tenant_use {
	u64 run_ns;
	u64 wait_ns; /* ready, but not running */
	u64 longest_wait_ns[2];
	u32 epochs[2]; /* those in which these two were noted */
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
	u64 woke_at;	   /* since when it waits for a CPU, if because it woke; else 0 */
	u64 slept_at;	   /* since when it sleeps; 0 when it does not */
	u64 burst_ns;	   /* how long it ran since it woke */
	u64 run_avg_ns;	   /* moving averages of its runs and its sleeps, and of sleeps for storage */
	u64 sleep_avg_ns;
	u64 io_avg_ns;
	enum role role;
	enum policy_row policy; /* that holds for it */
	u32 futexes;		/* waits for a futex that it began since it woke */
	bool io_sleep;		/* does it sleep because of storage? */
	bool used_up;		/* did it run for a slice since it woke? */
	bool urgent;		/* was it taken from the latency queue? */
	u64 no_gpu_until;	/* until when it is not looked up whether probes saw it use a GPU */
	u64 hint_until;		/* when its process's hint becomes too old; 0: there is none */
	u32 hint_generation;
	enum policy_row phase; /* of the hint */
	s32 node;
	struct {
		u64 since;
		u64 run_ns, wait_ns, sleep_ns, io_wait_ns, bursts, burst_ns, longest_burst_ns, futexes;
	} unsent;	 /* what is not yet in its process's activity */
	u32 waits_in;	 /* enum waits_in: the kind of queue */
	u32 queue_index; /* in queues, or the CPU's number */
};
