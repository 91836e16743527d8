/* SPDX-License-Identifier: GPL-2.0-only */
/* A program that the verifier refuses: it reads a map value that may not be there. */
#include "vmlinux_min.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u64);
} table SEC(".maps");

SEC("tracepoint/sched/sched_switch")
int unchecked(void *ctx)
{
	u32 key = 0;
	u64 *value = bpf_map_lookup_elem(&table, &key);

	return *value != 0;
}

char LICENSE[] SEC("license") = "GPL";
