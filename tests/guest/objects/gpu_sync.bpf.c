/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Stands for the probes on libcuda and NCCL: a thread that calls sched_yield() is taken as one that waited
 * for the GPU, and one that calls getpriority() as one that began a collective.
 */
#include "gpu_activity.h"

char LICENSE[] SEC("license") = "GPL";

static __always_inline struct gpu_activity *mine(void)
{
	return bpf_task_storage_get(&gpu_activity, bpf_get_current_task_btf(), 0,
				    BPF_LOCAL_STORAGE_GET_F_CREATE);
}

SEC("tracepoint/syscalls/sys_enter_sched_yield")
int on_sync(void *ctx)
{
	struct gpu_activity *a = mine();

	if (a)
		a->sync_ns = bpf_ktime_get_ns();
	return 0;
}

SEC("tracepoint/syscalls/sys_enter_getpriority")
int on_collective(void *ctx)
{
	struct gpu_activity *a = mine();

	if (a)
		a->nccl_ns = bpf_ktime_get_ns();
	return 0;
}
