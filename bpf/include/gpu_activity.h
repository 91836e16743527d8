/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * When each thread last worked with a GPU: written by zerneld's probes on libcuda and NCCL, from within that
 * thread, and read by the scheduler. Both have the two maps here, pinned below /sys/fs/bpf/zernel: who comes
 * first makes them, the other finds them. They stay when both are gone; an entry goes with its thread.
 *
 * A change of either struct raises LAYOUT of zernel.gpu.activity, which is part of the pins' names: the next
 * package must not find the maps of this one.
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

/*
 * Who writes: a map that nobody writes to would be a signal that is always silent, and must be told apart
 * from one that is absent. Each member is the id of a BPF link by which the writer is attached to such a
 * library, 0 for none. The reader asks the kernel whether there still is a link with this id: the kernel ends
 * a link with the process that holds it, however that process ends, and gives no id again before 2^31 others.
 */
struct gpu_probes {
	u32 libcuda_link; /* sync_ns and launch_ns are written */
	u32 libnccl_link; /* nccl_ns is written */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct gpu_probes);
} gpu_probes SEC(".maps");
