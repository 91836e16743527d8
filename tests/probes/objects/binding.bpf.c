/* SPDX-License-Identifier: GPL-2.0-only */
/* Every feature of zernel.bpf in one object: constants, globals, maps, a ring buffer, a uprobe. */
#include "vmlinux_min.h"

const volatile u32 factor = 1;
const volatile char label[8] = "unset";

u64 calls;
u64 seed = 7;

struct record {
	u64 argument;
	u64 cookie;
	u32 factor;
	char label[8];
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} records SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u32);
} per_cpu SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8);
	__type(key, u32);
	__type(value, u64);
} table SEC(".maps");

SEC("uprobe")
int on_call(struct pt_regs *ctx)
{
	u32 zero = 0;
	u32 *count = bpf_map_lookup_elem(&per_cpu, &zero);
	struct record *record;

	__sync_fetch_and_add(&calls, 1);
	if (count)
		*count += factor;
	record = bpf_ringbuf_reserve(&records, sizeof(*record), 0);
	if (!record)
		return 0;
	record->argument = PT_REGS_PARM1(ctx) + seed;
	record->cookie = bpf_get_attach_cookie(ctx);
	record->factor = factor;
	for (int i = 0; i < (int)sizeof(record->label); i++)
		record->label[i] = label[i];
	bpf_ringbuf_submit(record, 0);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
