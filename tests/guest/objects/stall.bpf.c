/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The scheduler with one fault: it never takes a task from a queue. The kernel must notice (its watchdog), end
 * it, and run every task with its own scheduler.
 */
#include "scx_compat.h"

#define dsq_move_to_local(queue) ((void)(queue), false)

#include "sched.bpf.c"
