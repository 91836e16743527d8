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
#include "sched_idle.h"
#include "sched_queue.h"

char LICENSE[] SEC("license") = "GPL";

/* Not called for a task that is bound to one CPU. */
SEC("struct_ops/zernel_select_cpu")
s32 BPF_PROG(zernel_select_cpu, struct task_struct *p, s32 prev_cpu, u64 wake_flags)
{
	s32 cpu = pick_idle(p, prev_cpu);
	struct task *t = task_of(p);
	struct cpu *previous, *chosen;
	struct queue *queue;

	if (cpu < 0 || !t)
		return prev_cpu;
	previous = cpu_of(prev_cpu);
	chosen = cpu_of(cpu);
	if (!previous || !chosen)
		return prev_cpu;
	count(idle_hits);
	if (previous->node != chosen->node)
		count(idle_remote);
	find_tenant(p, t);
	queue = queue_of(home(chosen), t->tenant);
	if (queue)
		t->vtime = settled(p, t->vtime, &queue->clock);
	t->ready_at = bpf_ktime_get_ns();
	/* The local queue is that of the CPU returned here; enqueue() is then not called. */
	dsq_insert(p, scx_dsq_local, settings.slice_ns, scx_enq_immed);
	return cpu;
}

SEC("struct_ops/zernel_enqueue")
void BPF_PROG(zernel_enqueue, struct task_struct *p, u64 enq_flags)
{
	s32 cpu = scx_bpf_task_cpu(p);
	struct cpu *here = cpu_of(cpu);
	struct task *t = task_of(p);

	/* Cannot happen: `cpus` has every CPU, init_task() made `t`. The task would be lost, so place it. */
	if (!here || !t) {
		dsq_insert(p, scx_dsq_local, settings.slice_ns, enq_flags);
		return;
	}
	leave_queue(t);
	find_tenant(p, t);
	if (!t->ready_at)
		t->ready_at = bpf_ktime_get_ns();
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
		enqueue_bound(p, t, cpu, here, enq_flags);
		scx_bpf_kick_cpu(cpu, scx_kick_idle);
		return;
	}
	enqueue_tenant(p, t, home(here), enq_flags);
	/*
	 * A CPU may have gone idle since select_cpu() looked, or that was not asked (a task at the end of
	 * its slice, behind others): without a kick it would sleep next to a waiting task.
	 */
	cpu = pick_idle(p, cpu);
	if (cpu >= 0)
		scx_bpf_kick_cpu(cpu, scx_kick_idle);
}

/* The task that runs here, which wants to go on; it is in no queue. */
struct candidate {
	bool there;
	bool bound;
	u32 tenant;
	u64 vtime;
};

/* Is the first task of the queue due before the running one? */
static __always_inline bool head_is_before(u64 queue, u64 vtime)
{
	struct head head = head_of(queue);

	return head.there && before(head.vtime, vtime);
}

/*
 * Serve the CPU's own queue, or its node's. Returns true if a task was found; `*keep` if it is the running
 * one.
 */
static __always_inline bool serve_bound(s32 cpu, struct cpu *here, const struct candidate *prev, bool *keep)
{
	if (prev->there && prev->bound && !head_is_before(CPU_QUEUE(cpu), prev->vtime)) {
		*keep = true;
		return true;
	}
	return take_bound(cpu, here);
}

static __always_inline bool serve_node(const struct view *view, const struct candidate *prev, bool *keep)
{
	if (!view->any)
		return false;
	if (prev->there && !prev->bound && prev->tenant == view->tenant &&
	    !head_is_before(NODE_QUEUE(view->node, view->tenant), prev->vtime)) {
		*keep = true;
		return true;
	}
	/* What the first tenant has may not run here. */
	return take(view->node, view->tenant) || take_any(view->node);
}

/*
 * Is the CPU's own queue to be served before its node's? The tenant that got less decides, and within one
 * tenant they take turns.
 */
static __always_inline bool bound_is_first(s32 cpu, struct cpu *here, const struct candidate *prev,
					   const struct view *view)
{
	u32 tenant = prev->tenant;
	struct head head;
	u64 order;

	if (!here->bound.waiting && !(prev->there && prev->bound))
		return false;
	if (!view->any || before(here->bound.served_at + settings.starvation_ns, view->now))
		return true;
	head = head_of(CPU_QUEUE(cpu));
	if (head.there)
		tenant = head.tenant;
	else if (!prev->there || !prev->bound)
		return false;
	tenant_at(tenant)->seen_at = view->now;
	if (tenant == view->tenant) {
		here->bound_first = !here->bound_first;
		return here->bound_first;
	}
	order = tenant_order(tenant);
	return before(order, view->order);
}

/* Serve a queue of the node that was not served for too long. */
static __always_inline bool rescue(const struct view *view)
{
	if (!view->starving || !take(view->node, view->starved))
		return false;
	count(rescues);
	return true;
}

/*
 * Take a task from another node. An idle CPU takes any: waiting is worse than a remote memory access. A
 * busy one leaves a single waiting task to its own node, so that two nodes do not trade one task for ever.
 */
static long steal_from(u32 i, struct steal *steal)
{
	u32 other = steal->own + i + 1 < nr_nodes ? steal->own + i + 1 : steal->own + i + 1 - nr_nodes;
	struct node *node = node_of(other);
	struct view view = {.node = other, .now = steal->now};

	if (!node || !node->waiting)
		return 0;
	view.waiting = node->waiting;
	bpf_loop(NR_SLOTS, view_slot, &view, 0);
	if (!view.any)
		return 0;
	if (steal->busy && scx_bpf_dsq_nr_queued(NODE_QUEUE(other, view.tenant)) < 2)
		return 0;
	if (!take(other, view.tenant) && !take_any(other))
		return 0;
	count(stolen);
	steal->found = true;
	return 1;
}

static __always_inline bool steal(u32 own, bool busy, u64 now)
{
	struct steal steal = {.own = own, .busy = busy, .now = now};

	if (nr_nodes > 1)
		bpf_loop(nr_nodes - 1, steal_from, &steal, 0);
	return steal.found;
}

SEC("struct_ops/zernel_dispatch")
void BPF_PROG(zernel_dispatch, s32 cpu, struct task_struct *prev)
{
	struct cpu *here = cpu_of(cpu);
	struct node *node = here ? node_of(home(here)) : NULL;
	struct candidate running = {};
	struct view view = {};
	bool keep = false, found;
	struct task *t = NULL;

	if (!node)
		return;
	view.now = bpf_ktime_get_ns();
	view.node = home(here);
	view.waiting = node->waiting;
	if (prev && prev->scx.flags & SCX_TASK_QUEUED) {
		t = task_of(prev);
		if (t) {
			charge_run(prev, t);
			running.there = true;
			running.bound = is_bound(prev);
			running.tenant = t->tenant;
			running.vtime = t->vtime;
		}
	}
	if (view.waiting || here->bound.waiting) {
		advance_tenant_clock(view.now);
		bpf_loop(NR_SLOTS, view_slot, &view, 0);
		/* The tenant of the running task is one of those that want the CPU, though it may not wait.
		 */
		if (running.there && !running.bound) {
			u64 order = tenant_order(running.tenant);

			if (!view.any || before(order, view.order)) {
				view.any = true;
				view.tenant = running.tenant;
				view.order = order;
			}
		}
		if (rescue(&view))
			return;
		if (bound_is_first(cpu, here, &running, &view))
			found = serve_bound(cpu, here, &running, &keep) || serve_node(&view, &running, &keep);
		else
			found = serve_node(&view, &running, &keep) || serve_bound(cpu, here, &running, &keep);
		if (found && !keep)
			return;
	}
	if (!keep && steal(view.node, running.there, view.now))
		return;
	/* The kernel lets `prev` go on, with its own default slice (20 ms) unless it has one. */
	if (running.there && prev) {
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
	struct queue *queue;

	if (!here || !t)
		return;
	leave_queue(t);
	note_wait(t);
	t->exec_at_start = p->se.sum_exec_runtime;
	if (is_bound(p)) {
		clock_advance(&here->bound.clock, t->vtime);
		return;
	}
	queue = queue_of(home(here), t->tenant);
	if (queue)
		clock_advance(&queue->clock, t->vtime);
}

SEC("struct_ops/zernel_stopping")
void BPF_PROG(zernel_stopping, struct task_struct *p, bool runnable)
{
	struct task *t = task_of(p);

	if (!t)
		return;
	charge_run(p, t);
	if (runnable)
		t->ready_at = bpf_ktime_get_ns();
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
	t->ready_at = 0;
	t->exec_at_start = p->se.sum_exec_runtime;
	queue = queue_of(home(here), t->tenant);
	if (queue)
		t->vtime = clock_time(&queue->clock);
}

SEC("struct_ops/zernel_disable")
void BPF_PROG(zernel_disable, struct task_struct *p)
{
	struct task *t = task_of(p);
	u32 only = 0;
	struct counters *mine = bpf_map_lookup_elem(&counters, &only);

	if (mine)
		mine->tasks--;
	if (t)
		leave_queue(t);
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

	if (!scx_dsq_local || !scx_enq_wakeup || !scx_kick_idle || !scx_pick_idle_core)
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
