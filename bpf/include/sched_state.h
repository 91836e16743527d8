/* SPDX-License-Identifier: GPL-2.0-only */
/* What the scheduler is told, what it keeps, and what it tells. */
#pragma once

#include "scx_compat.h"

#define NSEC_PER_USEC	 1000ULL
#define NSEC_PER_MSEC	 1000000ULL
#define PF_KTHREAD	 0x00200000 /* include/linux/sched.h: a kernel thread */
#define SCX_TASK_QUEUED	 1	    /* include/linux/sched/ext.h: on a run queue */
#define WEIGHT_OF_NICE_0 100
#define CLOCK_DIVISOR	 8  /* more: weights hold in longer queues, but waits are longer */
#define ERROR_NO_MEMORY	 12 /* ENOMEM and EINVAL of the C library */
#define ERROR_INVALID	 22
#define MAX_NODES	 1024 /* CONFIG_NODES_SHIFT is 10 at most */

/* Queue ids: nodes from 0, then one per CPU. User queue ids must be below 2^63. */
#define NODE_QUEUE(node) ((u64)(node))
#define CPU_QUEUE(cpu)	 ((1ULL << 32) + (u64)(cpu))

/*
 * How long a task may run before another gets its turn, in nanoseconds. Longer means fewer switches and
 * warmer caches, but a task that wakes while every CPU is busy waits longer. The kernel looks at it on
 * the timer tick only: below the tick (4 ms at HZ=250) a smaller value changes nothing.
 */
const volatile u64 slice_ns = 3 * NSEC_PER_MSEC;

/*
 * How many CPU numbers there are: one more than the highest possible CPU, online or not. More only costs
 * memory; less would leave CPUs without a queue, so init() fails.
 */
const volatile u32 nr_cpus = 1;

/*
 * How many node queues there are: the NUMA nodes that have CPUs, numbered from 0 without gaps, or 1 when
 * NUMA is ignored. More queues mean less contention and warmer caches, but each is ordered by itself.
 */
const volatile u32 nr_nodes = 1;

/*
 * Whether CPUs share cores (hyper-threading). If set, a core with no busy CPU is preferred to one with;
 * if it is set wrongly, idle CPUs are only found a little slower.
 */
const volatile bool smt;

/*
 * Constants of the running kernel that differ between versions or that clang 14 cannot take from its
 * BTF (64-bit enumerations). User space reads them from BTF; init() fails where one is still zero.
 */
const volatile u64 scx_dsq_local;
const volatile u64 scx_enq_wakeup;
const volatile u64 scx_kick_idle;
const volatile u64 scx_pick_idle_core;

/*
 * SCX_ENQ_IMMED of Linux 7.1 and later, 0 before: a task that was sent to an idle CPU and finds it taken by a
 * real-time task comes back to enqueue(). Before, zernel_cpu_release() sees to that.
 */
const volatile u64 scx_enq_immed;

/* What a CPU counts. Sums over all CPUs are what user space shows. */
struct counters {
	u64 idle_hits;	  /* tasks that woke and took an idle CPU at once */
	u64 idle_remote;  /* of those, on another node than before */
	u64 queued_node;  /* tasks put into a node's queue */
	u64 queued_cpu;	  /* tasks put into a CPU's queue: bound to it */
	u64 queued_local; /* per-CPU kernel threads run next on their CPU */
	u64 dispatched;	  /* tasks a CPU took from a queue */
	u64 stolen;	  /* of those, from another node's queue */
	u64 kept;	  /* slices renewed because the task was still the next */
	u64 tasks;	  /* tasks that joined minus tasks that left; wraps */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct counters);
} counters SEC(".maps");

/* The virtual time of a queue: that of the task which started last, or later as real time passes. */
struct clock {
	u64 vtime;
	u64 set_at; /* real time when vtime was set, ns */
};

struct cpu {
	u32 node;	      /* index of its node queue; set by user space */
	bool cpu_queue_first; /* whose turn it is: the CPU's own queue or the node's */
	struct clock clock;   /* of the CPU's own queue */
	u64 started_at;	      /* CPU time that the running task had received when it started, ns */
	owned_cpumask __kptr *scratch;
} __attribute__((aligned(64))); /* no two CPUs write to one cache line */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct cpu);
} cpus SEC(".maps");

struct node {
	s32 numa_id;	    /* the kernel's number of the node, -1 for none; set by user space */
	struct clock clock; /* of the node's queue */
	owned_cpumask __kptr *cpus;
} __attribute__((aligned(64)));

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct node);
} nodes SEC(".maps");

/* Why the kernel ended this scheduler. `kind` is written last: not 0 means that the rest is there. */
struct exit_record {
	s64 code;
	char reason[128];
	char message[1024];
	char dump[32768];
	u32 kind;
};

struct exit_record exit_record;

#define count(member)                                                          \
	do {                                                                   \
		u32 only = 0;                                                  \
		struct counters *mine = bpf_map_lookup_elem(&counters, &only); \
                                                                               \
		if (mine)                                                      \
			mine->member++;                                        \
	} while (0)

static __always_inline bool before(u64 a, u64 b)
{
	return (s64)(a - b) < 0;
}

static __always_inline struct cpu *cpu_of(s32 cpu)
{
	u32 key = cpu;

	return bpf_map_lookup_elem(&cpus, &key);
}

static __always_inline struct node *node_of(u32 node)
{
	return bpf_map_lookup_elem(&nodes, &node);
}
