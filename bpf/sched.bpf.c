// SPDX-License-Identifier: GPL-2.0-only
/*
 * Zernel's CPU scheduler for sched_ext, Linux 6.12 and later.
 *
 * A task that wakes takes an idle CPU at once if there is one: its previous CPU first, then one of the
 * same NUMA node, then any. Otherwise it waits, in order of virtual time (CPU time received, divided by
 * weight), in the queue of its NUMA node; a task bound to one CPU waits in a queue of that CPU. A CPU serves
 * those two queues in turn, and helps out other nodes when it has nothing to do.
 *
 * User space (zernel.scheduler.loader) sets the constants and fills `cpus` and `nodes` before it attaches
 * `zernel_ops`, and reads `counters` and `exit_record`. It finds their members by name, in this object's BTF.
 */
#include "scx_compat.h"
#include "sched_state.h"
#include "sched_clock.h"
#include "sched_idle.h"

char LICENSE[] SEC("license") = "GPL";

/* Not called for a task that is bound to one CPU. */
SEC("struct_ops/zernel_select_cpu")
s32 BPF_PROG(zernel_select_cpu, struct task_struct *p, s32 prev_cpu, u64 wake_flags)
{
	s32 cpu = pick_idle(p, prev_cpu);
	struct cpu *previous, *chosen;
	struct node *node;

	if (cpu < 0)
		return prev_cpu;
	count(idle_hits);
	previous = cpu_of(prev_cpu);
	chosen = cpu_of(cpu);
	if (!previous || !chosen)
		return cpu;
	if (previous->node != chosen->node)
		count(idle_remote);
	node = node_of(chosen->node);
	if (node)
		p->scx.dsq_vtime = settled(p, p->scx.dsq_vtime, &node->clock);
	/* The local queue is that of the CPU returned here; enqueue() is then not called. */
	dsq_insert(p, scx_dsq_local, slice_ns, scx_enq_immed);
	return cpu;
}

/* A task bound to `cpu`: it competes only with the others bound there, and in turn with the node's queue. */
static __always_inline void enqueue_bound(struct task_struct *p, s32 cpu, struct cpu *here, u64 enq_flags)
{
	/*
	 * A per-CPU kernel thread serves that CPU (interrupt threads, writeback, migration): it goes next.
	 * Only when it wakes: one that burns whole slices must not shut out everything else.
	 */
	if ((p->flags & PF_KTHREAD) && p->nr_cpus_allowed == 1 && (enq_flags & scx_enq_wakeup)) {
		count(queued_local);
		dsq_insert(p, scx_dsq_local, slice_ns, enq_flags);
		return;
	}
	count(queued_cpu);
	dsq_insert_vtime(p, CPU_QUEUE(cpu), slice_ns, settled(p, p->scx.dsq_vtime, &here->clock), enq_flags);
	scx_bpf_kick_cpu(cpu, scx_kick_idle);
}

SEC("struct_ops/zernel_enqueue")
void BPF_PROG(zernel_enqueue, struct task_struct *p, u64 enq_flags)
{
	s32 cpu = scx_bpf_task_cpu(p);
	struct cpu *here = cpu_of(cpu);
	struct node *node;

	/* Cannot happen: `cpus` has every possible CPU. The task would be lost, so place it regardless. */
	if (!here) {
		dsq_insert(p, scx_dsq_local, slice_ns, enq_flags);
		return;
	}
	if (is_bound(p)) {
		enqueue_bound(p, cpu, here, enq_flags);
		return;
	}
	node = node_of(here->node);
	count(queued_node);
	dsq_insert_vtime(p, NODE_QUEUE(here->node), slice_ns,
			 node ? settled(p, p->scx.dsq_vtime, &node->clock) : 0, enq_flags);
	/*
	 * A CPU may have gone idle since select_cpu() looked, or that was not asked (a task at the end of
	 * its slice, behind others): without a kick it would sleep next to a waiting task.
	 */
	cpu = pick_idle(p, cpu);
	if (cpu >= 0)
		scx_bpf_kick_cpu(cpu, scx_kick_idle);
}

/* Is the first task of the queue due before `vtime`? False for an empty queue. */
static __always_inline bool head_is_before(u64 queue, u64 vtime)
{
	struct bpf_iter_scx_dsq it;
	struct task_struct *first = NULL;
	bool result = false;

	if (!bpf_iter_scx_dsq_new(&it, queue, 0))
		first = bpf_iter_scx_dsq_next(&it);
	if (first)
		result = before(first->scx.dsq_vtime, vtime);
	bpf_iter_scx_dsq_destroy(&it);
	return result;
}

/*
 * Serve one of the CPU's two queues. `prev` is the task that ran until now if it wants to go on and belongs
 * to this queue, else NULL. It is not in the queue: if nothing there is due before it, it goes on.
 */
static __always_inline bool serve(u64 queue, const struct clock *clock, struct task_struct *prev,
				  const struct cpu *here)
{
	if (scx_bpf_dsq_nr_queued(queue) <= 0)
		return false;
	if (prev) {
		u64 ran = prev->se.sum_exec_runtime - here->started_at;
		u64 vtime = prev->scx.dsq_vtime + charge(prev, ran);

		if (!head_is_before(queue, settled(prev, vtime, clock))) {
			prev->scx.slice = slice_ns;
			count(kept);
			return true;
		}
	}
	if (!dsq_move_to_local(queue))
		return false;
	count(dispatched);
	return true;
}

/*
 * Take a task from another node. An idle CPU takes any: waiting is worse than a remote memory access. A
 * busy one leaves a single waiting task to its own node, so that two nodes do not trade one task for ever.
 */
static __always_inline bool steal(u32 own, bool busy)
{
	for (u32 i = 1; i < nr_nodes && i < MAX_NODES; i++) {
		u32 other = own + i < nr_nodes ? own + i : own + i - nr_nodes;

		if (scx_bpf_dsq_nr_queued(NODE_QUEUE(other)) > busy && dsq_move_to_local(NODE_QUEUE(other))) {
			count(dispatched);
			count(stolen);
			return true;
		}
	}
	return false;
}

SEC("struct_ops/zernel_dispatch")
void BPF_PROG(zernel_dispatch, s32 cpu, struct task_struct *prev)
{
	struct cpu *here = cpu_of(cpu);
	struct task_struct *prev_of_cpu = NULL, *prev_of_node = NULL;
	struct node *node = here ? node_of(here->node) : NULL;
	bool cpu_queue_first, busy;

	if (!node)
		return;
	busy = prev && (prev->scx.flags & SCX_TASK_QUEUED);
	if (busy) {
		if (is_bound(prev))
			prev_of_cpu = prev;
		else
			prev_of_node = prev;
	}
	cpu_queue_first = here->cpu_queue_first;
	here->cpu_queue_first = !cpu_queue_first;
	if (cpu_queue_first && serve(CPU_QUEUE(cpu), &here->clock, prev_of_cpu, here))
		return;
	if (serve(NODE_QUEUE(here->node), &node->clock, prev_of_node, here))
		return;
	if (!cpu_queue_first && serve(CPU_QUEUE(cpu), &here->clock, prev_of_cpu, here))
		return;
	if (steal(here->node, busy))
		return;
	/* The kernel lets `prev` go on, with its own default slice (20 ms) unless it has one. */
	if (busy && prev)
		prev->scx.slice = slice_ns;
}

/* running() and stopping() may execute on another CPU than the task's. */
SEC("struct_ops/zernel_running")
void BPF_PROG(zernel_running, struct task_struct *p)
{
	struct cpu *here = cpu_of(scx_bpf_task_cpu(p));
	struct node *node;

	if (!here)
		return;
	here->started_at = p->se.sum_exec_runtime;
	if (is_bound(p)) {
		clock_advance(&here->clock, p->scx.dsq_vtime);
		return;
	}
	node = node_of(here->node);
	if (node)
		clock_advance(&node->clock, p->scx.dsq_vtime);
}

SEC("struct_ops/zernel_stopping")
void BPF_PROG(zernel_stopping, struct task_struct *p, bool runnable)
{
	struct cpu *here = cpu_of(scx_bpf_task_cpu(p));

	if (here)
		p->scx.dsq_vtime += charge(p, p->se.sum_exec_runtime - here->started_at);
}

SEC("struct_ops/zernel_enable")
void BPF_PROG(zernel_enable, struct task_struct *p)
{
	struct cpu *here = cpu_of(scx_bpf_task_cpu(p));
	struct node *node = here ? node_of(here->node) : NULL;

	count(tasks);
	if (node)
		p->scx.dsq_vtime = clock_time(&node->clock);
}

SEC("struct_ops/zernel_disable")
void BPF_PROG(zernel_disable, struct task_struct *p)
{
	u32 only = 0;
	struct counters *mine = bpf_map_lookup_elem(&counters, &only);

	if (mine)
		mine->tasks--;
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
	*error = scx_bpf_create_dsq(NODE_QUEUE(index), node->numa_id);
	return *error != 0;
}

SEC("struct_ops.s/zernel_init")
s32 BPF_PROG(zernel_init)
{
	s32 error = 0;

	if (!scx_dsq_local || !scx_enq_wakeup || !scx_kick_idle || !scx_pick_idle_core)
		return -ERROR_INVALID;
	if (nr_cpus < scx_bpf_nr_cpu_ids() || !nr_nodes || nr_nodes > MAX_NODES || !slice_ns)
		return -ERROR_INVALID;
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
	.init = (void *)zernel_init,
	.exit = (void *)zernel_exit,
	.timeout_ms = 10000,
	.exit_dump_len = sizeof(((struct exit_record *)0)->dump),
	.name = "zernel",
};
