/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What every BPF program here starts from: the kernel's short integer names, the stable user API
 * (map types, flags, helper ids), and the registers that a uprobe sees.
 *
 * Kernel structs are declared where they are used, with only the members touched and with
 * __relocated: libbpf finds each member's real offset when it loads the object, so that one object
 * runs on every kernel that has the member.
 */
#pragma once

#include <linux/bpf.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s32 s32;
typedef __s64 s64;
typedef _Bool bool;
#define true 1
#define false 0
#define NULL ((void *)0)

#define __relocated __attribute__((preserve_access_index))

/*
 * struct pt_regs of x86-64 as the user API names it (arch/x86/include/uapi/asm/ptrace.h). Its layout
 * never changes. The system's header cannot be used: compiled for BPF it gives the 32-bit one.
 */
struct pt_regs {
	unsigned long r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi;
	unsigned long orig_rax, rip, cs, eflags, rsp, ss;
};

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>
