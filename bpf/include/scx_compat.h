/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * sched_ext from Linux 6.12 to 7.3: the kernel's functions under every name and prototype they have
 * had, and the few kernel structs that the scheduler touches.
 *
 * libbpf drops the last ___suffix of a declaration, and leaves a weak one at NULL when the running kernel
 * has no such function or has it with another prototype. So each variant is declared, and the wrapper
 * calls the one that is there; the verifier removes the other branches.
 */
#pragma once

/* bpftool would otherwise add prototypes of one kernel only; harmless where none are generated. */
#define BPF_NO_KFUNC_PROTOTYPES

#include "vmlinux_min.h"

#define __weak_ksym    __ksym __weak
#define have(function) ((void *)(function) != NULL)

struct cpumask {
	unsigned long bits[1];
} __relocated;

/*
 * A mask that a map owns. The kernel finds the type by its name. clang 14 loses the kptr mark on a pointer to
 * a struct of which there are also unmarked pointers, but keeps it on one to a typedef.
 */
struct bpf_cpumask {
	struct cpumask cpumask;
};
typedef struct bpf_cpumask owned_cpumask;

struct sched_entity {
	u64 sum_exec_runtime;
} __relocated;

struct sched_ext_entity {
	u32 flags;
	u32 weight;
	u64 slice;
	u64 dsq_vtime;
} __relocated;

struct kernfs_node {
	u64 id;
} __relocated;

struct cgroup {
	int level;
	struct kernfs_node *kn;
	struct cgroup *ancestors[1];
} __relocated;

struct css_set {
	struct cgroup *dfl_cgrp;
} __relocated;

struct task_struct {
	int tgid;
	u64 start_boottime;
	struct task_struct *group_leader;
	struct css_set *cgroups;
	unsigned int flags;
	int nr_cpus_allowed;
	const struct cpumask *cpus_ptr;
	unsigned short migration_disabled;
	unsigned in_iowait : 1;
	struct sched_entity se;
	struct sched_ext_entity scx;
} __relocated;

/* Values in zernel.scheduler.kernel; libbpf relocates an enumeration only to an enumeration. */
enum scx_exit_kind { SCX_EXIT_NONE };

struct scx_exit_info {
	enum scx_exit_kind kind;
	s64 exit_code;
	const char *reason;
	char *msg;
	char *dump;
} __relocated;

struct scx_cpu_release_args;
struct scx_init_task_args;

/* libbpf matches the members by name: one that is zero here may be absent from the running kernel. */
struct sched_ext_ops {
	s32 (*select_cpu)(struct task_struct *p, s32 prev_cpu, u64 wake_flags);
	void (*enqueue)(struct task_struct *p, u64 enq_flags);
	void (*dispatch)(s32 cpu, struct task_struct *prev);
	void (*running)(struct task_struct *p);
	void (*stopping)(struct task_struct *p, bool runnable);
	void (*enable)(struct task_struct *p);
	void (*disable)(struct task_struct *p);
	s32 (*init_task)(struct task_struct *p, struct scx_init_task_args *args);
	void (*cpu_release)(s32 cpu, struct scx_cpu_release_args *args);
	s32 (*init)(void);
	void (*exit)(struct scx_exit_info *info);
	u64 hotplug_seq;
	u32 timeout_ms;
	u32 exit_dump_len;
	char name[128];
};

struct bpf_iter_scx_dsq {
	u64 __opaque[6];
} __attribute__((aligned(8)));

u32 scx_bpf_nr_cpu_ids(void) __ksym;
s32 scx_bpf_create_dsq(u64 dsq_id, s32 node) __ksym;
s32 scx_bpf_dsq_nr_queued(u64 dsq_id) __ksym;
s32 scx_bpf_task_cpu(const struct task_struct *p) __ksym;
void scx_bpf_kick_cpu(s32 cpu, u64 flags) __ksym;
bool scx_bpf_test_and_clear_cpu_idle(s32 cpu) __ksym;
s32 scx_bpf_pick_idle_cpu(const struct cpumask *allowed, u64 flags) __ksym;
const struct cpumask *scx_bpf_get_idle_smtmask(void) __ksym;
void scx_bpf_put_idle_cpumask(const struct cpumask *mask) __ksym;
u32 scx_bpf_reenqueue_local(void) __weak_ksym;
int bpf_iter_scx_dsq_new(struct bpf_iter_scx_dsq *it, u64 dsq_id, u64 flags) __ksym;
struct task_struct *bpf_iter_scx_dsq_next(struct bpf_iter_scx_dsq *it) __ksym;
void bpf_iter_scx_dsq_destroy(struct bpf_iter_scx_dsq *it) __ksym;

struct bpf_cpumask *bpf_cpumask_create(void) __ksym;
void bpf_cpumask_release(struct bpf_cpumask *mask) __ksym;
void bpf_cpumask_set_cpu(u32 cpu, struct bpf_cpumask *mask) __ksym;
bool bpf_cpumask_test_cpu(u32 cpu, const struct cpumask *mask) __ksym;
bool bpf_cpumask_intersects(const struct cpumask *a, const struct cpumask *b) __ksym;
u32 bpf_cpumask_weight(const struct cpumask *mask) __ksym;
const struct cpumask *scx_bpf_get_online_cpumask(void) __ksym;
void scx_bpf_put_cpumask(const struct cpumask *mask) __ksym;
bool bpf_cpumask_and(struct bpf_cpumask *to, const struct cpumask *a, const struct cpumask *b) __ksym;
void bpf_rcu_read_lock(void) __ksym;
void bpf_rcu_read_unlock(void) __ksym;

/* 6.12: scx_bpf_dispatch. 6.13: dsq_insert. 6.19: dsq_insert___v2, which returns bool. */
bool scx_bpf_dsq_insert___v2___new(struct task_struct *p, u64 dsq, u64 slice, u64 flags) __weak_ksym;
void scx_bpf_dsq_insert___mid(struct task_struct *p, u64 dsq, u64 slice, u64 flags) __weak_ksym;
void scx_bpf_dispatch___old(struct task_struct *p, u64 dsq, u64 slice, u64 flags) __weak_ksym;

/* Put the task at the end of a FIFO queue. */
static __always_inline void dsq_insert(struct task_struct *p, u64 dsq, u64 slice, u64 flags)
{
	if (have(scx_bpf_dsq_insert___v2___new))
		scx_bpf_dsq_insert___v2___new(p, dsq, slice, flags);
	else if (have(scx_bpf_dsq_insert___mid))
		scx_bpf_dsq_insert___mid(p, dsq, slice, flags);
	else
		scx_bpf_dispatch___old(p, dsq, slice, flags);
}

/* 6.12: dispatch_vtime. 6.13: dsq_insert_vtime. 6.19: __dsq_insert_vtime, its arguments in a struct. */
struct scx_bpf_dsq_insert_vtime_args {
	u64 dsq_id;
	u64 slice;
	u64 vtime;
	u64 enq_flags;
};

bool __scx_bpf_dsq_insert_vtime___new(struct task_struct *p,
				      struct scx_bpf_dsq_insert_vtime_args *args) __weak_ksym;
void scx_bpf_dsq_insert_vtime___mid(struct task_struct *p, u64 dsq, u64 slice, u64 vtime,
				    u64 flags) __weak_ksym;
void scx_bpf_dispatch_vtime___old(struct task_struct *p, u64 dsq, u64 slice, u64 vtime,
				  u64 flags) __weak_ksym;

/* Put the task into a queue that is ordered by virtual time. */
static __always_inline void dsq_insert_vtime(struct task_struct *p, u64 dsq, u64 slice, u64 vtime, u64 flags)
{
	if (have(__scx_bpf_dsq_insert_vtime___new)) {
		struct scx_bpf_dsq_insert_vtime_args args = {
			.dsq_id = dsq,
			.slice = slice,
			.vtime = vtime,
			.enq_flags = flags,
		};

		__scx_bpf_dsq_insert_vtime___new(p, &args);
	} else if (have(scx_bpf_dsq_insert_vtime___mid)) {
		scx_bpf_dsq_insert_vtime___mid(p, dsq, slice, vtime, flags);
	} else {
		scx_bpf_dispatch_vtime___old(p, dsq, slice, vtime, flags);
	}
}

/* 6.12: consume. 6.13: dsq_move_to_local. 7.1: dsq_move_to_local___v2 with flags. */
bool scx_bpf_dsq_move_to_local___v2___new(u64 dsq, u64 flags) __weak_ksym;
bool scx_bpf_dsq_move_to_local___mid(u64 dsq) __weak_ksym;
bool scx_bpf_consume___old(u64 dsq) __weak_ksym;

/* Take the first task of the queue that may run on the dispatching CPU; false if there is none. */
static __always_inline bool dsq_move_to_local(u64 dsq)
{
	if (have(scx_bpf_dsq_move_to_local___v2___new))
		return scx_bpf_dsq_move_to_local___v2___new(dsq, 0);
	if (have(scx_bpf_dsq_move_to_local___mid))
		return scx_bpf_dsq_move_to_local___mid(dsq);
	return scx_bpf_consume___old(dsq);
}
