/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * A CUDA program that does what it is told: workload LIBRARY, then one command a line on standard input, one
 * line of answer each. It opens the library as the CUDA runtime does (dlopen), so that the same program runs
 * on the stub and on NVIDIA's own library.
 *
 *   open PATH            dlopen it (done at the start when LIBRARY is given); functions are looked for in the
 *                        newest library first
 *   init                 cuInit                          count              cuDeviceGetCount
 *   create DEV [VER]     cuCtxCreate_vVER (2)            retain DEV         cuDevicePrimaryCtxRetain
 *   set N | push N       make context number N current   unset              cuCtxSetCurrent(NULL)
 *   pop                  cuCtxPopCurrent_v2
 *   destroy N            cuCtxDestroy_v2                 reset DEV          cuDevicePrimaryCtxReset_v2
 *   alloc BYTES TIMES    cuMemAlloc_v2                   free TIMES         cuMemFree_v2 of the newest
 *   badfree POINTER      cuMemFree_v2                    asyncfree POINTER  cuMemFreeAsync
 *   break 0|1            stub_break
 *   storm THREADS N TIMES  threads with context N allocate (1 + thread) * 256 bytes and free it, TIMES each,
 *                          then keep one allocation of as many bytes each
 *   nanoseconds TIMES    allocate and free 256 bytes; answers the mean time of one such pair
 *   call NAME [THREAD]   any function of the library, all arguments zero; in the main thread (0, the default)
 *                        or in another, which begins at its first use and has the newest context
 *   tid [THREAD]         the kernel's number of such a thread
 *
 * Contexts are numbered from 0 as they are made. The answer is the CUresult of the (last) call, or a number.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef unsigned long long CUdeviceptr;

enum { MAX_POINTERS = 1 << 18, MAX_CONTEXTS = 64, MAX_THREADS = 64, MAX_LIBRARIES = 8, NO_FUNCTION = -1 };

static void *libraries[MAX_LIBRARIES];
static int library_count;
static CUdeviceptr pointers[MAX_POINTERS];
static int pointer_count;
static void *contexts[MAX_CONTEXTS];
static int context_count;

static void *function(const char *name)
{
	void *found = NULL;

	for (int i = library_count - 1; i >= 0 && !found; i--)
		found = dlsym(libraries[i], name);
	if (!found) {
		printf("no function %s\n", name);
		exit(3);
	}
	return found;
}

#define CALL(name, types, ...) (((int (*) types)function(#name))(__VA_ARGS__))

static int allocate(size_t bytes, int times)
{
	int (*call)(CUdeviceptr *, size_t) = function("cuMemAlloc_v2"), result = 0;

	for (int i = 0; i < times; i++) {
		CUdeviceptr pointer = 0;

		result = call(&pointer, bytes);
		if (!result && pointer_count < MAX_POINTERS)
			pointers[pointer_count++] = pointer;
	}
	return result;
}

static int release(int times)
{
	int (*call)(CUdeviceptr) = function("cuMemFree_v2"), result = 0;

	while (times-- > 0 && pointer_count)
		result = call(pointers[--pointer_count]);
	return result;
}

struct job {
	pthread_t thread;
	void *context;
	size_t bytes;
	int times;
	int result;
};

static void *storm(void *argument)
{
	struct job *job = argument;
	int (*alloc)(CUdeviceptr *, size_t) = function("cuMemAlloc_v2");
	int (*release)(CUdeviceptr) = function("cuMemFree_v2");
	CUdeviceptr pointer;

	job->result = CALL(cuCtxSetCurrent, (void *), job->context);
	for (int i = 0; i < job->times && !job->result; i++) {
		job->result = alloc(&pointer, job->bytes);
		if (!job->result)
			job->result = release(pointer);
	}
	if (!job->result)
		job->result = alloc(&pointer, job->bytes);
	return NULL;
}

static int storms(int threads, int context, int times)
{
	static struct job jobs[MAX_THREADS];
	int result = 0;

	for (int i = 0; i < threads; i++) {
		jobs[i] = (struct job){ .context = contexts[context], .bytes = (1 + i) * 256, .times = times };
		pthread_create(&jobs[i].thread, NULL, storm, &jobs[i]);
	}
	for (int i = 0; i < threads; i++) {
		pthread_join(jobs[i].thread, NULL);
		if (jobs[i].result)
			result = jobs[i].result;
	}
	return result;
}

static int nanoseconds(int times)
{
	int (*alloc)(CUdeviceptr *, size_t) = function("cuMemAlloc_v2");
	int (*release)(CUdeviceptr) = function("cuMemFree_v2");
	struct timespec before, after;
	CUdeviceptr pointer;

	clock_gettime(CLOCK_MONOTONIC, &before);
	for (int i = 0; i < times; i++) {
		if (alloc(&pointer, 256) || release(pointer))
			return NO_FUNCTION;
	}
	clock_gettime(CLOCK_MONOTONIC, &after);
	return (int)(((after.tv_sec - before.tv_sec) * 1000000000L + after.tv_nsec - before.tv_nsec) / times);
}

/* A thread that calls what it is told; the answer goes back under the same lock. */
struct caller {
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	int running;
	int busy;
	char name[64]; /* empty: asks for the number of the thread */
	int answer;
};

static struct caller callers[MAX_THREADS];

/* The widest function of CUDA takes eleven arguments; those that take fewer do not look at the others. */
static int call_named(const char *name)
{
	if (!*name)
		return gettid();
	return ((int (*)(long, long, long, long, long, long, long, long, long, long, long))function(name))(
		0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
}

static void *serve(void *argument)
{
	struct caller *caller = argument;

	if (context_count)
		CALL(cuCtxSetCurrent, (void *), contexts[context_count - 1]);
	pthread_mutex_lock(&caller->lock);
	for (;;) {
		while (!caller->busy)
			pthread_cond_wait(&caller->changed, &caller->lock);
		caller->answer = call_named(caller->name);
		caller->busy = 0;
		pthread_cond_signal(&caller->changed);
	}
	return NULL;
}

static int call_in(int thread, const char *name)
{
	struct caller *caller = &callers[thread];
	int answer;

	if (!thread)
		return call_named(name);
	if (!caller->running) {
		pthread_mutex_init(&caller->lock, NULL);
		pthread_cond_init(&caller->changed, NULL);
		pthread_create(&caller->thread, NULL, serve, caller);
		caller->running = 1;
	}
	pthread_mutex_lock(&caller->lock);
	strcpy(caller->name, name);
	caller->busy = 1;
	pthread_cond_signal(&caller->changed);
	while (caller->busy)
		pthread_cond_wait(&caller->changed, &caller->lock);
	answer = caller->answer;
	pthread_mutex_unlock(&caller->lock);
	return answer;
}

static int make_context(int (*how)(void **, int, int), int device, int version)
{
	int result = how(&contexts[context_count], device, version);

	if (!result)
		context_count++;
	return result;
}

static int create(void **context, int device, int version)
{
	if (version == 3)
		return CALL(cuCtxCreate_v3, (void **, void *, int, unsigned, int), context, NULL, 0, 0, device);
	if (version == 4)
		return CALL(cuCtxCreate_v4, (void **, void *, unsigned, int), context, NULL, 0, device);
	return CALL(cuCtxCreate_v2, (void **, unsigned, int), context, 0, device);
}

static int retain(void **context, int device, int version)
{
	(void)version;
	return CALL(cuDevicePrimaryCtxRetain, (void **, int), context, device);
}

static int open_library(const char *path)
{
	void *library = library_count < MAX_LIBRARIES ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;

	if (!library) {
		fprintf(stderr, "cannot open %s: %s\n", path, dlerror());
		return 1;
	}
	libraries[library_count++] = library;
	return 0;
}

static int run(const char *line)
{
	char word[16] = "", path[1024] = "", name[64] = "";
	long long a = 0, b = 0, c = 0;
	void *popped;
	int count;

	sscanf(line, "%15s %lld %lld %lld", word, &a, &b, &c);
	if (!strcmp(word, "open") && sscanf(line, "%*s %1023s", path) == 1)
		return open_library(path);
	if (!strcmp(word, "call") && sscanf(line, "%*s %63s %lld", name, &a) >= 1 && (size_t)a < MAX_THREADS)
		return call_in((int)a, name);
	if (!strcmp(word, "tid") && (size_t)a < MAX_THREADS)
		return call_in((int)a, "");
	if (!strcmp(word, "init"))
		return CALL(cuInit, (unsigned), 0);
	if (!strcmp(word, "count"))
		return CALL(cuDeviceGetCount, (int *), &count);
	if (!strcmp(word, "create"))
		return make_context(create, (int)a, (int)b);
	if (!strcmp(word, "retain"))
		return make_context(retain, (int)a, 0);
	if (!strcmp(word, "set"))
		return CALL(cuCtxSetCurrent, (void *), contexts[a]);
	if (!strcmp(word, "unset"))
		return CALL(cuCtxSetCurrent, (void *), NULL);
	if (!strcmp(word, "push"))
		return CALL(cuCtxPushCurrent_v2, (void *), contexts[a]);
	if (!strcmp(word, "pop"))
		return CALL(cuCtxPopCurrent_v2, (void **), &popped);
	if (!strcmp(word, "destroy"))
		return CALL(cuCtxDestroy_v2, (void *), contexts[a]);
	if (!strcmp(word, "reset"))
		return CALL(cuDevicePrimaryCtxReset_v2, (int), (int)a);
	if (!strcmp(word, "alloc"))
		return allocate((size_t)a, (int)b);
	if (!strcmp(word, "free"))
		return release((int)a);
	if (!strcmp(word, "badfree"))
		return CALL(cuMemFree_v2, (CUdeviceptr), (CUdeviceptr)a);
	if (!strcmp(word, "asyncfree"))
		return CALL(cuMemFreeAsync, (CUdeviceptr, void *), (CUdeviceptr)a, NULL);
	if (!strcmp(word, "break"))
		return CALL(stub_break, (int), (int)a);
	if (!strcmp(word, "storm"))
		return storms((int)a, (int)b, (int)c);
	if (!strcmp(word, "nanoseconds"))
		return nanoseconds((int)a);
	fprintf(stderr, "unknown command: %s", line);
	exit(2);
}

int main(int argc, char **argv)
{
	char line[1100];

	if (argc > 1 && open_library(argv[1]))
		return 1;
	while (fgets(line, sizeof(line), stdin)) {
		printf("%d\n", run(line));
		fflush(stdout);
	}
	return 0;
}
