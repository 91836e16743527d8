/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * A libnccl.so.2 without GPUs, for tests: names, argument order and results of the real library's calls that
 * begin a collective. As there, a call only hands the work over and returns at once, and the function starts
 * with a push. It asks for no communicator.
 */
#include <stddef.h>

enum { ncclSuccess = 0 };

/* Each has a place of its own, though their machine code is the same. A register in use has to be pushed. */
#define BEGINS(name, ...)                                      \
	__attribute__((no_icf)) int name(__VA_ARGS__);         \
	int name(__VA_ARGS__)                                  \
	{                                                      \
		__asm__ volatile("" ::: "rbx");                \
		return ncclSuccess;                            \
	}

BEGINS(ncclAllReduce, const void *, void *, size_t, int, int, void *, void *)
BEGINS(ncclBroadcast, const void *, void *, size_t, int, int, void *, void *)
BEGINS(ncclReduce, const void *, void *, size_t, int, int, int, void *, void *)
BEGINS(ncclAllGather, const void *, void *, size_t, int, void *, void *)
BEGINS(ncclReduceScatter, const void *, void *, size_t, int, int, void *, void *)
BEGINS(ncclAlltoAll, const void *, void *, size_t, int, void *, void *)
BEGINS(ncclSend, const void *, size_t, int, int, void *, void *)
BEGINS(ncclRecv, void *, size_t, int, int, void *, void *)
BEGINS(ncclGroupStart, void)
BEGINS(ncclGroupEnd, void)
