/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * When each thread last worked with a GPU: written by the probes on libcuda and NCCL, from within that
 * thread, and read by the scheduler. The map is pinned, so that whoever comes second finds it; it goes with
 * the last of both and an entry goes with its thread.
 */
#pragma once

#include "vmlinux_min.h"

/* CLOCK_MONOTONIC; 0 for never seen. */
struct gpu_activity {
	u64 sync_ns;   /* a wait for the GPU ended */
	u64 launch_ns; /* work was given to it */
	u64 nccl_ns;   /* a collective was begun */
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct gpu_activity);
} gpu_activity SEC(".maps");
