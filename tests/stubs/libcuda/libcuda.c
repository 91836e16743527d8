/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * A libcuda.so.1 without a GPU, for tests: the export names, the argument order, the result codes and the
 * machine code of the exports are those of the real library (driver 535); the memory is pretended.
 *
 * Every export is the real library's 30-byte thunk: compare a state word, return CUDA_ERROR_DEINITIALIZED
 * if the library is shut down, else jump through a table. With -DPLAIN_EXPORTS they are ordinary functions.
 *
 * Environment: STUB_CUDA_DEVICES, number of GPUs (1); STUB_CUDA_BYTES, memory of each GPU (16 GiB);
 * STUB_CUDA_SYNC_US, microseconds that each wait for the GPU sleeps (0), as one of a program does that has
 * asked for blocking waits; read by cuInit.
 */
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

typedef int CUresult;
typedef int CUdevice;
typedef unsigned long long CUdeviceptr;
typedef struct context *CUcontext;

enum {
	CUDA_SUCCESS = 0,
	CUDA_ERROR_INVALID_VALUE = 1,
	CUDA_ERROR_OUT_OF_MEMORY = 2,
	CUDA_ERROR_NOT_INITIALIZED = 3,
	CUDA_ERROR_INVALID_DEVICE = 101,
	CUDA_ERROR_INVALID_CONTEXT = 201,
	CUDA_ERROR_ILLEGAL_ADDRESS = 700,
};

enum { MAX_DEVICES = 16, MAX_SLOTS = 1 << 17, MAX_STACK = 32 };

struct context {
	CUdevice device;
	int primary;
	int live;
};

struct slot {
	size_t bytes; /* 0: free */
	struct context *context;
};

/* Where the pretended memory starts; real device pointers are in this range too. */
static const CUdeviceptr BASE = 0x7f0000000000ULL;
static const CUdeviceptr STEP = 0x200000;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int devices;
static size_t bytes_per_device;
static struct timespec wait_time;
static size_t used[MAX_DEVICES];
static struct context primary[MAX_DEVICES];
static struct slot slots[MAX_SLOTS];
static int lowest_free;
static int broken; /* after a fault on the GPU, every call of the process fails */
static __thread struct context *stack[MAX_STACK];
static __thread int depth;

/* The word that the thunks compare. The real library stores the magic number at exit. */
__attribute__((visibility("hidden"))) volatile uint32_t stub_state;

static CUresult real_cuInit(unsigned int flags)
{
	const char *count = getenv("STUB_CUDA_DEVICES"), *bytes = getenv("STUB_CUDA_BYTES");
	const char *wait = getenv("STUB_CUDA_SYNC_US");
	long wait_us = wait ? atol(wait) : 0;

	if (flags)
		return CUDA_ERROR_INVALID_VALUE;
	devices = count ? atoi(count) : 1;
	bytes_per_device = bytes ? strtoull(bytes, NULL, 10) : 16ULL << 30;
	wait_time = (struct timespec){ .tv_sec = wait_us / 1000000, .tv_nsec = wait_us % 1000000 * 1000 };
	return devices > 0 && devices <= MAX_DEVICES ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static CUresult real_cuDeviceGetCount(int *count)
{
	if (!devices)
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!count)
		return CUDA_ERROR_INVALID_VALUE;
	*count = devices;
	return CUDA_SUCCESS;
}

static CUresult real_cuDeviceGet(CUdevice *device, int ordinal)
{
	if (!devices)
		return CUDA_ERROR_NOT_INITIALIZED;
	if (ordinal < 0 || ordinal >= devices)
		return CUDA_ERROR_INVALID_DEVICE;
	*device = ordinal;
	return CUDA_SUCCESS;
}

static struct context *current(void)
{
	return depth ? stack[depth - 1] : NULL;
}

static CUresult real_cuCtxPushCurrent_v2(CUcontext context)
{
	if (!context || !context->live || depth == MAX_STACK)
		return CUDA_ERROR_INVALID_CONTEXT;
	stack[depth++] = context;
	return CUDA_SUCCESS;
}

static CUresult real_cuCtxPopCurrent_v2(CUcontext *context)
{
	if (!depth)
		return CUDA_ERROR_INVALID_CONTEXT;
	depth--;
	if (context)
		*context = stack[depth];
	return CUDA_SUCCESS;
}

static CUresult real_cuCtxSetCurrent(CUcontext context)
{
	if (context && !context->live)
		return CUDA_ERROR_INVALID_CONTEXT;
	if (depth)
		depth--;
	return context ? real_cuCtxPushCurrent_v2(context) : CUDA_SUCCESS;
}

static CUresult real_cuCtxCreate_v2(CUcontext *context, unsigned int flags, CUdevice device)
{
	struct context *made;

	(void)flags;
	if (!devices)
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!context)
		return CUDA_ERROR_INVALID_VALUE;
	if (device < 0 || device >= devices)
		return CUDA_ERROR_INVALID_DEVICE;
	made = calloc(1, sizeof(*made));
	if (!made)
		return CUDA_ERROR_OUT_OF_MEMORY;
	made->device = device;
	made->live = 1;
	*context = made;
	return real_cuCtxPushCurrent_v2(made);
}

static CUresult real_cuCtxCreate_v3(CUcontext *context, void *parameters, int number, unsigned int flags,
				    CUdevice device)
{
	(void)parameters;
	(void)number;
	return real_cuCtxCreate_v2(context, flags, device);
}

static CUresult real_cuCtxCreate_v4(CUcontext *context, void *parameters, unsigned int flags, CUdevice device)
{
	(void)parameters;
	return real_cuCtxCreate_v2(context, flags, device);
}

static void release_memory_of(const struct context *context)
{
	pthread_mutex_lock(&lock);
	for (int i = 0; i < MAX_SLOTS; i++) {
		if (slots[i].bytes && slots[i].context == context) {
			used[context->device] -= slots[i].bytes;
			slots[i].bytes = 0;
			if (i < lowest_free)
				lowest_free = i;
		}
	}
	pthread_mutex_unlock(&lock);
}

static CUresult real_cuCtxDestroy_v2(CUcontext context)
{
	if (!context || !context->live || context->primary)
		return CUDA_ERROR_INVALID_CONTEXT;
	if (current() == context)
		depth--;
	release_memory_of(context);
	context->live = 0; /* kept: other threads may still have it current */
	return CUDA_SUCCESS;
}

static CUresult real_cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device)
{
	if (!devices)
		return CUDA_ERROR_NOT_INITIALIZED;
	if (device < 0 || device >= devices)
		return CUDA_ERROR_INVALID_DEVICE;
	primary[device] = (struct context){ .device = device, .primary = 1, .live = 1 };
	*context = &primary[device];
	return CUDA_SUCCESS;
}

static CUresult real_cuDevicePrimaryCtxReset_v2(CUdevice device)
{
	if (device < 0 || device >= devices)
		return CUDA_ERROR_INVALID_DEVICE;
	release_memory_of(&primary[device]);
	return CUDA_SUCCESS;
}

/* Gives the lowest free address, so that an address is in use again as soon as it can be. */
static CUresult real_cuMemAlloc_v2(CUdeviceptr *pointer, size_t bytes)
{
	CUresult result = CUDA_ERROR_OUT_OF_MEMORY;
	struct context *context = current();

	if (!devices)
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!context || !context->live)
		return CUDA_ERROR_INVALID_CONTEXT;
	if (broken)
		return CUDA_ERROR_ILLEGAL_ADDRESS;
	if (!pointer || !bytes)
		return CUDA_ERROR_INVALID_VALUE;
	pthread_mutex_lock(&lock);
	while (lowest_free < MAX_SLOTS && slots[lowest_free].bytes)
		lowest_free++;
	if (lowest_free < MAX_SLOTS && bytes <= bytes_per_device - used[context->device]) {
		slots[lowest_free] = (struct slot){ .bytes = bytes, .context = context };
		used[context->device] += bytes;
		*pointer = BASE + STEP * (CUdeviceptr)lowest_free++;
		result = CUDA_SUCCESS;
	}
	pthread_mutex_unlock(&lock);
	return result;
}

static CUresult real_cuMemFree_v2(CUdeviceptr pointer)
{
	CUdeviceptr slot = (pointer - BASE) / STEP;
	CUresult result = CUDA_ERROR_INVALID_VALUE;

	if (!pointer)
		return CUDA_SUCCESS;
	if (broken)
		return CUDA_ERROR_ILLEGAL_ADDRESS;
	if (pointer < BASE || (pointer - BASE) % STEP || slot >= MAX_SLOTS)
		return result;
	pthread_mutex_lock(&lock);
	if (slots[slot].bytes) {
		used[slots[slot].context->device] -= slots[slot].bytes;
		slots[slot].bytes = 0;
		if ((int)slot < lowest_free)
			lowest_free = (int)slot;
		result = CUDA_SUCCESS;
	}
	pthread_mutex_unlock(&lock);
	return result;
}

static CUresult real_cuMemFreeAsync(CUdeviceptr pointer, void *stream)
{
	(void)stream;
	return real_cuMemFree_v2(pointer);
}

static CUresult usable(void)
{
	const struct context *context = current();

	if (!devices)
		return CUDA_ERROR_NOT_INITIALIZED;
	if (!context || !context->live)
		return CUDA_ERROR_INVALID_CONTEXT;
	return broken ? CUDA_ERROR_ILLEGAL_ADDRESS : CUDA_SUCCESS;
}

/* The same for all: the pretended GPU needs its time, then is done with all it was given. */
static CUresult wait_for_gpu(void)
{
	CUresult result = usable();

	if (!result && (wait_time.tv_sec || wait_time.tv_nsec))
		clock_nanosleep(CLOCK_MONOTONIC, 0, &wait_time, NULL);
	return result;
}

/* Each has a place of its own, as in the real library, though their machine code is the same. */
#define SUBMITS(name, ...)                                                 \
	static __attribute__((no_icf)) CUresult real_##name(__VA_ARGS__) \
	{                                                                  \
		return usable();                                           \
	}
#define WAITS(name, ...)                                                   \
	static __attribute__((no_icf)) CUresult real_##name(__VA_ARGS__) \
	{                                                                  \
		return wait_for_gpu();                                     \
	}

WAITS(cuCtxSynchronize, void)
WAITS(cuStreamSynchronize, void *)
WAITS(cuEventSynchronize, void *)
WAITS(cuMemcpyHtoD_v2, CUdeviceptr, const void *, size_t)
WAITS(cuMemcpyDtoH_v2, void *, CUdeviceptr, size_t)
WAITS(cuMemcpy, CUdeviceptr, CUdeviceptr, size_t)
SUBMITS(cuMemcpyHtoDAsync_v2, CUdeviceptr, const void *, size_t, void *)
SUBMITS(cuMemcpyDtoHAsync_v2, void *, CUdeviceptr, size_t, void *)
SUBMITS(cuLaunchKernel, void *, unsigned int, unsigned int, unsigned int, unsigned int, unsigned int,
	unsigned int, unsigned int, void *, void **, void **)
SUBMITS(cuLaunchKernelEx, const void *, void *, void **, void **)
SUBMITS(cuLaunchCooperativeKernel, void *, unsigned int, unsigned int, unsigned int, unsigned int,
	unsigned int, unsigned int, unsigned int, void *, void **)
SUBMITS(cuGraphLaunch, void *, void *)

/* Not of the real library: breaks (1) or mends (0) the process's pretended GPU. */
int stub_break(int how)
{
	broken = how;
	return CUDA_SUCCESS;
}

#ifdef PLAIN_EXPORTS
#define EXPORT_AS(name, function) \
	extern __typeof__(function) name __attribute__((alias(#function)))
#else
/* The bytes of the real library: cmpl $0x321cba00,state; je 1f; jmp *table; nopw; 1: mov $4,%eax; ret */
#define EXPORT_AS(name, function)                                                                   \
	__attribute__((visibility("hidden"), used)) __typeof__(&function) table_##name = function; \
	__asm__(".text\n.p2align 5\n.globl " #name "\n.type " #name ", @function\n" #name ":\n"    \
		"cmpl $0x321cba00, stub_state(%rip)\n"                                             \
		"je 1f\n"                                                                          \
		"jmp *table_" #name "(%rip)\n"                                                     \
		"nopw 0x0(%rax,%rax,1)\n"                                                          \
		"1: movl $4, %eax\n"                                                               \
		"ret\n"                                                                            \
		".size " #name ", . - " #name "\n")
#endif

#define EXPORT(name) EXPORT_AS(name, real_##name)

EXPORT(cuInit);
EXPORT(cuDeviceGetCount);
EXPORT(cuDeviceGet);
EXPORT(cuCtxCreate_v2);
EXPORT(cuCtxCreate_v3);
EXPORT(cuCtxCreate_v4);
EXPORT(cuCtxDestroy_v2);
EXPORT(cuCtxSetCurrent);
EXPORT(cuCtxPushCurrent_v2);
EXPORT(cuCtxPopCurrent_v2);
EXPORT(cuDevicePrimaryCtxRetain);
EXPORT(cuDevicePrimaryCtxReset_v2);
EXPORT(cuMemAlloc_v2);
EXPORT(cuMemFree_v2);
EXPORT(cuMemFreeAsync);
EXPORT(cuCtxSynchronize);
EXPORT(cuStreamSynchronize);
EXPORT(cuEventSynchronize);
EXPORT(cuMemcpyHtoD_v2);
EXPORT(cuMemcpyDtoH_v2);
EXPORT(cuMemcpy);
EXPORT(cuMemcpyHtoDAsync_v2);
EXPORT(cuMemcpyDtoHAsync_v2);
EXPORT(cuLaunchKernel);
EXPORT(cuLaunchKernelEx);
EXPORT(cuLaunchCooperativeKernel);
EXPORT(cuGraphLaunch);

/* The twins for programs whose default stream is the thread's own. */
EXPORT_AS(cuStreamSynchronize_ptsz, real_cuStreamSynchronize);
EXPORT_AS(cuMemcpyHtoD_v2_ptds, real_cuMemcpyHtoD_v2);
EXPORT_AS(cuMemcpyDtoH_v2_ptds, real_cuMemcpyDtoH_v2);
EXPORT_AS(cuMemcpy_ptds, real_cuMemcpy);
EXPORT_AS(cuLaunchKernel_ptsz, real_cuLaunchKernel);
EXPORT_AS(cuLaunchKernelEx_ptsz, real_cuLaunchKernelEx);
EXPORT_AS(cuLaunchCooperativeKernel_ptsz, real_cuLaunchCooperativeKernel);
EXPORT_AS(cuGraphLaunch_ptsz, real_cuGraphLaunch);
