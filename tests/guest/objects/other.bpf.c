/* SPDX-License-Identifier: GPL-2.0-only */
/* Another scheduler than Zernel's: what sched_ext does by itself, under a name. */
#include "scx_compat.h"

char LICENSE[] SEC("license") = "GPL";

SEC("struct_ops/other_exit")
void BPF_PROG(other_exit, struct scx_exit_info *info)
{
}

SEC(".struct_ops.link")
struct sched_ext_ops other_ops = {
	.exit = (void *)other_exit,
	.name = "other",
};
