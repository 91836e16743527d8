/* SPDX-License-Identifier: GPL-2.0-only */
/* Stands for the scheduler: has the maps that it shares with the probes, and nothing else. */
#include "gpu_activity.h"

char LICENSE[] SEC("license") = "GPL";
