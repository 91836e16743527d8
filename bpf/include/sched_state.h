/* SPDX-License-Identifier: GPL-2.0-only */
/* What the scheduler is told, what it keeps, and what it tells. */
#pragma once

#include "scx_compat.h"
#include "sched_intf.h"

#define NSEC_PER_USEC	 1000ULL
#define NSEC_PER_MSEC	 1000000ULL
#define PF_KTHREAD	 0x00200000 /* include/linux/sched.h: a kernel thread */
#define SCX_TASK_QUEUED	 1	    /* include/linux/sched/ext.h: on a run queue */
#define CLOCK_DIVISOR	 8	    /* more: weights hold in longer queues, but waits are longer */
#define ERROR_NO_MEMORY	 12	    /* ENOMEM and EINVAL of the C library */
#define ERROR_INVALID	 22
#define MAX_NODES	 1024 /* CONFIG_NODES_SHIFT is 10 at most */
#define MAX_CGROUP_DEPTH 64
#define PRIORITY_IDLE	 127 /* of a CPU that runs nothing: nobody needs to preempt it */

/* Each node has a queue for each tenant, whose slot is its number, and two more. */
#define LATENCY_SLOT MAX_TENANTS       /* for those that must run soon; ordered by when */
#define LOW_SLOT     (MAX_TENANTS + 1) /* for those that yield to all others */
#define NR_SLOTS     (MAX_TENANTS + 2)

/* Queue ids: those of nodes, then one per CPU. User queue ids must be below 2^63. */
#define NODE_QUEUE(node, slot) ((u64)(node) << 8 | (slot))
#define CPU_QUEUE(cpu)	       ((1ULL << 32) + (u64)(cpu))

/*
 * How many CPU numbers there are: one more than the highest possible CPU, online or not. More only costs
 * memory; less would leave CPUs without a queue, so init() fails.
 */
const volatile u32 nr_cpus = 1;

/* How many NUMA nodes have CPUs, numbered from 0 without gaps. */
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
const volatile u64 scx_kick_preempt;
const volatile u64 scx_pick_idle_core;

/*
 * SCX_ENQ_IMMED of Linux 7.1 and later, 0 before: a task that was sent to an idle CPU and finds it taken by a
 * real-time task comes back to enqueue(). Before, zernel_cpu_release() sees to that.
 */
const volatile u64 scx_enq_immed;

/* Sections of their own, so that user space can write each as a whole. */
struct settings settings SEC(".data.settings");
struct tenant_settings tenant_settings[MAX_TENANTS] SEC(".data.tenants");

struct exit_record exit_record;

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

/* What goes with a queue of tasks. */
struct queue {
	struct clock clock;
	u64 served_at; /* when a task was last taken from it, or it ceased to be empty; real time, ns */
	u32 waiting;   /* tasks in it, and those on their way in and out */
} __attribute__((aligned(64)));

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, NR_SLOTS); /* times the number of nodes */
	__type(key, u32);
	__type(value, struct queue);
} queues SEC(".maps");

struct cpu {
	u32 node;	     /* index; set by user space */
	bool bound_first;    /* whose turn it is when the CPU's own queue and the node's are of one tenant */
	struct queue bound;  /* the CPU's own queue */
	u64 balanced_at;     /* when it last looked at what waits at other nodes */
	u64 next_preemption; /* when, by the rate, it may be taken from a task again; some may come early */
	u64 urgent_ns;	     /* CPU time that the latency queue got beyond its part, as of urgent_at */
	u64 urgent_at;
	s32 priority; /* of the task that runs, and its tenant */
	u32 tenant;
	owned_cpumask __kptr *scratch;
} __attribute__((aligned(64))); /* no two CPUs write to one cache line */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct cpu);
} cpus SEC(".maps");

struct node {
	s32 numa_id; /* the kernel's number of the node, -1 for none; set by user space */
	u64 waiting; /* bit per slot: there are tasks in its queue, or on their way in */
	u32 nr_cpus;
	owned_cpumask __kptr *cpus;
} __attribute__((aligned(64)));

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct node);
} nodes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, u64);   /* id of a cgroup (v2) */
	__type(value, u32); /* the tenant that it, and what is below it, belongs to */
} tenant_cgroups SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_TENANTS);
	__type(key, u32);
	__type(value, struct tenant_use);
} tenant_use SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct delays);
} delays SEC(".maps");

/* By process (thread group). Not preallocated: they are large, and few entries are used. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, u32);
	__type(value, struct hint);
} hints SEC(".maps");

/* What is done now goes into the one of settings.epoch & 1, while user space reads and clears the other. */
struct activity_table {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, u32);
	__type(value, struct activity);
} activity_0 SEC(".maps"), activity_1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct task);
} tasks SEC(".maps");

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

static __always_inline struct queue *queue_of(u32 node, u32 slot)
{
	u32 key = node * NR_SLOTS + slot;

	return bpf_map_lookup_elem(&queues, &key);
}

/* The node whose queues the CPU uses. */
static __always_inline u32 home(const struct cpu *cpu)
{
	return settings.numa ? cpu->node : 0;
}

static __always_inline struct task *task_of(struct task_struct *p)
{
	return bpf_task_storage_get(&tasks, p, 0, 0);
}
