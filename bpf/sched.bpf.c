// SPDX-License-Identifier: GPL-2.0-only
/*
 * Zernel's CPU scheduler for sched_ext, Linux 6.12 and later.
 *
 * A task that wakes takes an idle CPU at once if there is one: its previous CPU first, then one of the
 * same NUMA node, then any. Otherwise it waits in its tenant's queue of its NUMA node, in order of virtual
 * time (CPU time received, divided by weight); a task bound to one CPU waits in a queue of that CPU. A CPU
 * serves the tenant that got least for its weight, and helps out other nodes when it has nothing to do.
 *
 * User space (zernel.scheduler.loader) sets the constants, the settings and `cpus` and `nodes` before it
 * attaches `zernel_ops`, and reads what sched_intf.h describes.
 */
#include "sched_dispatch.h"
#include "sched_idle.h"

char LICENSE[] SEC("license") = "GPL";

/*
 * Not called for a task that is bound to one CPU.
 *
 * SCX_WAKE_SYNC (a pipe's or socket's waker, about to sleep) is not heeded: an idle CPU is as good as for
 * EEVDF, and following the waker was measured to be slower, for pipes and for hackbench.
 */
SEC("struct_ops/zernel_select_cpu")
s32 BPF_PROG(zernel_select_cpu, struct task_struct *p, s32 prev_cpu, u64 wake_flags)
{
	struct cpu *previous = cpu_of(prev_cpu), *chosen;
	struct task *t = task_of(p);
	s32 cpu;

	if (!previous || !t)
		return prev_cpu;
	note_wake(p, t, bpf_ktime_get_ns());
	cpu = pick_idle(p, prev_cpu, previous, preferred_node(p, t, previous->node));
	if (cpu < 0)
		return prev_cpu;
	chosen = cpu == prev_cpu ? previous : cpu_of(cpu);
	if (!chosen)
		return prev_cpu;
	count(idle_hits);
	if (chosen != previous && home(previous) != home(chosen))
		count(idle_remote);
	find_tenant(p, t);
	/* The local queue is that of the CPU returned here; enqueue() is then not called. */
	dsq_insert(p, scx_dsq_local, settings.slice_ns, scx_enq_immed);
	return cpu;
}

/* A task bound to this CPU came: it runs as soon as the CPU is idle, or now, if that is its policy. */
static __always_inline void call_cpu(struct task *t, s32 cpu, struct cpu *here, u64 now)
{
	const struct policy *policy = policy_of(t);
	struct wish wish = {
		.now = now,
		.priority = waking_priority(policy),
		.any_rate = policy->preemption == PREEMPT_LOW_LATENCY,
	};

	if (!t->woke_at || !may_preempt(here, &wish)) {
		if (wish.denied)
			count(preempt_denied);
		scx_bpf_kick_cpu(cpu, scx_kick_idle);
		return;
	}
	note_preemption(here, &wish);
	here->bound_first = true;
	scx_bpf_kick_cpu(cpu, scx_kick_preempt);
}

/*
 * A task waits in a queue of the node. A CPU may have gone idle since select_cpu() looked, or that was not
 * asked (a task at the end of its slice, behind others): without a kick it would sleep next to a waiting
 * task.
 */
static __always_inline void call_node(struct task_struct *p, struct task *t, s32 cpu, struct cpu *here,
				      u32 node, u32 slot, u64 now)
{
	const struct policy *policy = policy_of(t);
	struct wish wish = {.now = now, .priority = waking_priority(policy)};
	s32 idle = pick_idle(p, cpu, here, node);

	if (idle >= 0) {
		scx_bpf_kick_cpu(idle, scx_kick_idle);
	} else if (!t->woke_at) {
		return;
	} else if (policy->preemption >= PREEMPT_AGGRESSIVE) {
		preempt_for(p, t, cpu, node, slot == t->tenant && is_over_share(slot));
	} else if (may_preempt(here, &wish)) {
		note_preemption(here, &wish);
		scx_bpf_kick_cpu(cpu, scx_kick_preempt);
	}
}

SEC("struct_ops/zernel_enqueue")
void BPF_PROG(zernel_enqueue, struct task_struct *p, u64 enq_flags)
{
	s32 cpu = scx_bpf_task_cpu(p);
	struct cpu *here = cpu_of(cpu);
	struct task *t = task_of(p);
	u64 now = bpf_ktime_get_ns();
	u32 slot, node;

	/* Cannot happen: `cpus` has every CPU, init_task() made `t`. The task would be lost, so place it. */
	if (!here || !t) {
		dsq_insert(p, scx_dsq_local, settings.slice_ns, enq_flags);
		return;
	}
	leave_queue(t);
	find_tenant(p, t);
	note_wake(p, t, now);
	if (!t->ready_at)
		t->ready_at = now;
	if (is_bound(p)) {
		/*
		 * A per-CPU kernel thread serves that CPU (interrupt threads, writeback, migration): it goes
		 * next. Only when it wakes: one that burns whole slices must not shut out everything else.
		 */
		if ((p->flags & PF_KTHREAD) && p->nr_cpus_allowed == 1 && (enq_flags & scx_enq_wakeup)) {
			count(queued_local);
			dsq_insert(p, scx_dsq_local, settings.slice_ns, enq_flags);
			return;
		}
		enqueue_bound(p, t, cpu, here, enq_flags, now);
		call_cpu(t, cpu, here, now);
		return;
	}
	advance_tenant_clock(now);
	slot = slot_for(t, here, now);
	node = settings.numa ? preferred_node(p, t, here->node) : 0;
	enqueue_node(p, t, node, slot, enq_flags, now);
	call_node(p, t, cpu, here, node, slot, now);
}

/*
 * Serve the queues of the CPU and its node. Returns true if a task was taken from them; `*keep` if the
 * running task is to go on before those that wait.
 */
static __always_inline bool serve(s32 cpu, struct cpu *here, const struct candidate *running, u64 now,
				  bool *keep)
{
	struct view view = {};
	bool found, in_budget;

	/* What waits since other nodes had queues: no CPU is at home there any more. */
	if (!settings.numa && steal(home(here), false))
		return true;
	look(home(here), now, &view);
	advance_tenant_clock(now);
	/* The running task's tenant wants the CPU too, though none of its tasks may wait. */
	if (running->there && !running->bound && !running->yields) {
		u64 order = tenant_order(running->tenant);

		if (!view.any || before(order, view.order)) {
			view.any = true;
			view.tenant = running->tenant;
			view.order = order;
		}
	}
	if (rescue(&view, cpu, here))
		return true;
	in_budget = may_serve_urgent(here, now);
	if ((in_budget || urgent_waited(&view)) && serve_urgent(&view)) {
		if (!in_budget)
			count(latency_over);
		return true;
	}
	if (balance(cpu, here, &view, running))
		return true;
	if (bound_is_first(cpu, here, running, &view))
		found = serve_bound(cpu, running, keep) || serve_node(&view, running, keep);
	else
		found = serve_node(&view, running, keep) || serve_bound(cpu, running, keep);
	return (found || serve_last(&view, running, keep)) && !*keep;
}

SEC("struct_ops/zernel_dispatch")
void BPF_PROG(zernel_dispatch, s32 cpu, struct task_struct *prev)
{
	struct cpu *here = cpu_of(cpu);
	struct node *node = here ? node_of(home(here)) : NULL;
	struct candidate running = {};
	bool goes_on, waiting, keep = false;
	struct task *t;
	u64 now = 0;

	if (!node)
		return;
	goes_on = prev && prev->scx.flags & SCX_TASK_QUEUED;
	waiting = node->waiting || here->bound.waiting;
	/* Neither: the CPU goes idle, and another task may wait for it to do so. */
	if (goes_on || waiting)
		now = bpf_ktime_get_ns();
	if (goes_on) {
		t = task_of(prev);
		if (t) {
			charge_run(prev, t, here, now);
			find_tenant(prev, t);
			note_slice(prev, t, now);
			note_runner(here, t);
			send_activity(prev, t, cpu, now);
			running.there = true;
			running.bound = is_bound(prev);
			running.yields = policy_of(t)->preemption == PREEMPT_YIELD;
			running.tenant = t->tenant;
			running.order = task_order(t);
		}
	}
	if (waiting && serve(cpu, here, &running, now, &keep))
		return;
	if (!keep && steal(home(here), running.there))
		return;
	/* The kernel lets `prev` go on, with its own default slice (20 ms) unless it has one. */
	if (running.there && goes_on) {
		prev->scx.slice = settings.slice_ns;
		if (keep)
			count(kept);
	}
}

/* running() and stopping() may execute on another CPU than the task's. */
SEC("struct_ops/zernel_running")
void BPF_PROG(zernel_running, struct task_struct *p)
{
	struct cpu *here = cpu_of(scx_bpf_task_cpu(p));
	struct task *t = task_of(p);
	u64 now = bpf_ktime_get_ns();
	struct queue *queue;
	u32 waited_in;

	if (!here || !t)
		return;
	waited_in = t->waits_in;
	t->urgent = waited_in == WAITS_IN_NODE && t->queue_index % NR_SLOTS == LATENCY_SLOT;
	leave_queue(t);
	note_wait(t, now);
	note_delay(t, now);
	t->exec_at_start = p->se.sum_exec_runtime;
	note_runner(here, t);
	/* One that found an idle CPU competed with nobody: its time tells nothing of those that wait. */
	if (waited_in == WAITS_IN_CPU) {
		clock_advance(&here->bound.clock, t->vtime, now);
	} else if (waited_in == WAITS_IN_NODE) {
		queue = queue_of(home(here), t->tenant);
		if (queue)
			clock_advance(&queue->clock, t->vtime, now);
	}
}

SEC("struct_ops/zernel_stopping")
void BPF_PROG(zernel_stopping, struct task_struct *p, bool runnable)
{
	struct cpu *here = cpu_of(scx_bpf_task_cpu(p));
	struct task *t = task_of(p);
	u64 now;

	if (!t || !here)
		return;
	now = bpf_ktime_get_ns();
	charge_run(p, t, here, now);
	here->priority = PRIORITY_IDLE;
	if (runnable)
		t->ready_at = now;
	else
		note_sleep(p, t, now);
	send_activity(p, t, scx_bpf_task_cpu(p), now);
}

/* A task that joins, by being made or by changing its class. What is charged to it begins now. */
SEC("struct_ops/zernel_enable")
void BPF_PROG(zernel_enable, struct task_struct *p)
{
	struct cpu *here = cpu_of(scx_bpf_task_cpu(p));
	struct task *t = task_of(p);
	struct queue *queue;

	count(tasks);
	if (!t || !here)
		return;
	t->ready_at = t->woke_at = t->slept_at = t->burst_ns = 0;
	/* Nothing is known of it yet. */
	t->run_avg_ns = 2 * settings.short_burst_ns;
	t->exec_at_start = p->se.sum_exec_runtime;
	queue = queue_of(home(here), t->tenant);
	if (queue)
		t->vtime = clock_time(&queue->clock, bpf_ktime_get_ns());
}

SEC("struct_ops/zernel_disable")
void BPF_PROG(zernel_disable, struct task_struct *p)
{
	struct task *t = task_of(p);
	u32 only = 0;
	struct counters *mine = bpf_map_lookup_elem(&counters, &only);

	if (mine)
		mine->tasks--;
	if (!t)
		return;
	leave_queue(t);
	t->unsent.since = 0;
	send_activity(p, t, scx_bpf_task_cpu(p), bpf_ktime_get_ns());
}

/* Each task gets its storage here, so that it is never missing later. */
SEC("struct_ops.s/zernel_init_task")
s32 BPF_PROG(zernel_init_task, struct task_struct *p, struct scx_init_task_args *args)
{
	return bpf_task_storage_get(&tasks, p, 0, BPF_LOCAL_STORAGE_GET_F_CREATE) ? 0 : -ERROR_NO_MEMORY;
}

/*
 * A real-time task took the CPU: what waits in its local queue goes back to where other CPUs see it.
 * Deprecated from 7.2 on: user space clears the operation where the kernel has SCX_ENQ_IMMED (above).
 * Older kernels do not call it when the CPU was idle: a task that was just sent there waits for the
 * real-time task. That takes both within the same few microseconds.
 */
SEC("struct_ops/zernel_cpu_release")
void BPF_PROG(zernel_cpu_release, s32 cpu, struct scx_cpu_release_args *args)
{
	if (have(scx_bpf_reenqueue_local))
		scx_bpf_reenqueue_local();
}

static long init_cpu(u32 cpu, s32 *error)
{
	struct cpu *here = cpu_of(cpu);
	struct node *node = here ? node_of(here->node) : NULL;
	struct bpf_cpumask *scratch, *members;

	*error = -ERROR_NO_MEMORY;
	if (!here || !node)
		return 1;
	here->priority = PRIORITY_IDLE;
	scratch = bpf_cpumask_create();
	if (!scratch)
		return 1;
	scratch = bpf_kptr_xchg(&here->scratch, scratch);
	if (scratch)
		bpf_cpumask_release(scratch);
	bpf_rcu_read_lock();
	members = node->cpus;
	if (members)
		bpf_cpumask_set_cpu(cpu, members);
	node->nr_cpus++;
	bpf_rcu_read_unlock();
	*error = scx_bpf_create_dsq(CPU_QUEUE(cpu), node->numa_id);
	return *error != 0;
}

static long init_node(u32 index, s32 *error)
{
	struct node *node = node_of(index);
	struct bpf_cpumask *members;

	*error = -ERROR_NO_MEMORY;
	if (!node)
		return 1;
	members = bpf_cpumask_create();
	if (!members)
		return 1;
	members = bpf_kptr_xchg(&node->cpus, members);
	if (members)
		bpf_cpumask_release(members);
	for (u32 slot = 0; slot < NR_SLOTS; slot++) {
		*error = scx_bpf_create_dsq(NODE_QUEUE(index, slot), node->numa_id);
		if (*error)
			return 1;
	}
	return 0;
}

SEC("struct_ops.s/zernel_init")
s32 BPF_PROG(zernel_init)
{
	const struct cpumask *online;
	s32 error = 0;

	if (!scx_dsq_local || !scx_enq_wakeup || !scx_kick_idle || !scx_kick_preempt || !scx_pick_idle_core)
		return -ERROR_INVALID;
	if (nr_cpus < scx_bpf_nr_cpu_ids() || !nr_nodes || nr_nodes > MAX_NODES || !settings.slice_ns)
		return -ERROR_INVALID;
	online = scx_bpf_get_online_cpumask();
	nr_online = bpf_cpumask_weight(online);
	scx_bpf_put_cpumask(online);
	bpf_loop(nr_nodes, init_node, &error, 0);
	if (!error)
		bpf_loop(nr_cpus, init_cpu, &error, 0);
	return error;
}

SEC("struct_ops/zernel_exit")
void BPF_PROG(zernel_exit, struct scx_exit_info *info)
{
	bpf_probe_read_kernel_str(exit_record.reason, sizeof(exit_record.reason), info->reason);
	bpf_probe_read_kernel_str(exit_record.message, sizeof(exit_record.message), info->msg);
	bpf_probe_read_kernel_str(exit_record.dump, sizeof(exit_record.dump), info->dump);
	exit_record.code = info->exit_code;
	/* Published with a full barrier: user space reads the rest once this is not 0. */
	__sync_lock_test_and_set(&exit_record.kind, info->kind);
}

/* What the tracepoint sys_enter_futex gives: struct trace_event_raw_sys_enter. */
struct futex_enter {
	u64 common;
	s64 number;
	u64 args[6];
};

#define FUTEX_OPERATION	  0x7f /* include/uapi/linux/futex.h: without the flags */
#define FUTEX_WAIT	  0
#define FUTEX_WAIT_BITSET 9

/* Attached only if collectives are to be told apart, for it costs each futex call. */
SEC("tracepoint/syscalls/sys_enter_futex")
int on_futex(struct futex_enter *call)
{
	u64 operation = call->args[1] & FUTEX_OPERATION;
	struct task *t;

	if (operation != FUTEX_WAIT && operation != FUTEX_WAIT_BITSET)
		return 0;
	t = bpf_task_storage_get(&tasks, bpf_get_current_task_btf(), 0, 0);
	if (t)
		t->futexes++;
	return 0;
}

SEC(".struct_ops.link")
struct sched_ext_ops zernel_ops = {
	.select_cpu = (void *)zernel_select_cpu,
	.enqueue = (void *)zernel_enqueue,
	.dispatch = (void *)zernel_dispatch,
	.running = (void *)zernel_running,
	.stopping = (void *)zernel_stopping,
	.enable = (void *)zernel_enable,
	.disable = (void *)zernel_disable,
	.cpu_release = (void *)zernel_cpu_release,
	.init_task = (void *)zernel_init_task,
	.init = (void *)zernel_init,
	.exit = (void *)zernel_exit,
	.timeout_ms = 10000,
	.exit_dump_len = sizeof(((struct exit_record *)0)->dump),
	.name = "zernel",
};
