/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * gpu_activity: tells the scheduler when each thread last waited for a GPU, gave it work, or began a
 * collective. User space attaches each program to the functions that it is for.
 *
 * Launches come by the hundred thousand a second: a program looks its thread up and stores the time. A
 * library that is reached through two mounts may be probed twice, which stores it twice.
 */
#include "gpu_activity.h"

char LICENSE[] SEC("license") = "GPL";

/* Calls that were not noted, for the kernel had no memory for what is remembered of the thread. */
u64 missed;

static __always_inline struct gpu_activity *mine(void)
{
	struct gpu_activity *a = bpf_task_storage_get(&gpu_activity, bpf_get_current_task_btf(), 0,
						      BPF_LOCAL_STORAGE_GET_F_CREATE);

	if (!a)
		__sync_fetch_and_add(&missed, 1);
	return a;
}

/* The call returns when the GPU is done; what the thread does then is its turn. */
SEC("uretprobe")
int on_wait_end(void *ctx)
{
	struct gpu_activity *a = mine();

	if (a)
		a->sync_ns = bpf_ktime_get_ns();
	return 0;
}

SEC("uprobe")
int on_launch(void *ctx)
{
	struct gpu_activity *a = mine();

	if (a)
		a->launch_ns = bpf_ktime_get_ns();
	return 0;
}

SEC("uprobe")
int on_collective(void *ctx)
{
	struct gpu_activity *a = mine();

	if (a)
		a->nccl_ns = bpf_ktime_get_ns();
	return 0;
}
