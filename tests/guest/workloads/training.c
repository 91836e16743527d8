/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * A synthetic training loop, with CPU hogs beside it if asked for: training NAME=VALUE...
 *
 *   seconds=N       how long to measure (10), after a second that warms up
 *   cuda=PATH       the stub libcuda
 *   sync_us=N       how long each wait for its GPU sleeps (1000)
 *   nccl=PATH       the stub libnccl; without it there is no collective
 *   hogs=N          processes that only compute (0)
 *   loaders=N       threads that read the data set and decode it (0; then no step waits for data)
 *   data=PATH       the data set: a file on a file system that knows O_DIRECT, of at least 16 MiB
 *   batches=N       micro-batches of a step (1): each is launched, and waited for, forward and backward
 *   launch_us=N     CPU time that preparing one launch takes (100)
 *   optimizer_us=N  CPU time of the optimizer at the end of a step (0: there is none)
 *
 * Prints as JSON, all in microseconds: how long each step took; for how much of that the launching thread, or
 * that of the collective, slept on when its time was up, and was not ready to run; and how long the launching
 * thread was ready but did not run after each wait for the GPU, as the kernel accounts for it. Then what part
 * of a CPU the loop used, and the rounds that the hogs made per second.
 *
 * Timers are late where an emulator runs all CPUs in turns on one thread, and the more the busier they are,
 * whatever the scheduler: hence the sleeps that were too long.
 *
 * What computes does so for a time on the CPU, not for an amount of work: in an emulated guest two busy CPUs
 * are each half as fast as one, which no scheduler can help. What hogs do is counted as work.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
	MAX_HOGS = 256,
	MAX_LOADERS = 64,
	MAX_STEPS = 1 << 17,
	MAX_WAITS = 1 << 20,
	READ_BYTES = 32 << 10, /* one sample */
	READS = 4,	       /* samples of a micro-batch */
	DATA_READS = (16 << 20) / READ_BYTES,
	LOAD_US = 2000, /* CPU time of a micro-batch: reading it, and decoding for the rest */
	QUEUE = 4,	/* batches that are kept ready */
	HOPS = 4,	/* of a collective: a message, and what its arrival costs */
	HOP_US = 500,
	HOP_CPU_US = 100,
	WARM_UP_US = 1000000,
	HOG_ROUND = 10000,
};

static struct {
	long seconds, hogs, loaders, batches, launch_us, optimizer_us, sync_us;
	const char *cuda, *nccl, *data;
} wanted = {.seconds = 10, .batches = 1, .launch_us = 100, .sync_us = 1000};

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static int64_t clock_us(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return now.tv_sec * 1000000L + now.tv_nsec / 1000;
}

/* Compute until this thread had so much CPU time. */
static void compute_until(int64_t end)
{
	while (clock_us(CLOCK_THREAD_CPUTIME_ID) < end)
		for (volatile int i = 0; i < 100; i++)
			;
}

static void compute(long us)
{
	compute_until(clock_us(CLOCK_THREAD_CPUTIME_ID) + us);
}

/* ---- What became of a thread's time ---- */

static __thread int account; /* this thread's schedstat */

static void open_account(void)
{
	account = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
	if (account < 0)
		fail("schedstat");
}

struct moment {
	int64_t at, ran, waited; /* us; what this thread did so far: waited is ready, but not running */
};

static struct moment moment(void)
{
	struct moment now = {.at = clock_us(CLOCK_MONOTONIC), .ran = clock_us(CLOCK_THREAD_CPUTIME_ID)};
	char text[100] = "";
	long long ran, waited = 0;

	/* What it says of running is as of the last tick. */
	if (pread(account, text, sizeof(text) - 1, 0) < 0 || sscanf(text, "%lld %lld", &ran, &waited) != 2)
		fail("schedstat");
	now.waited = waited / 1000;
	return now;
}

/* For how much longer than it asked for did this thread sleep? */
static int64_t overslept_us(struct moment before, struct moment after, long asked_us)
{
	int64_t slept = after.at - before.at - (after.ran - before.ran) - (after.waited - before.waited);

	return slept > asked_us ? slept - asked_us : 0;
}

/* ---- Hogs ---- */

static volatile uint64_t *rounds; /* of each hog, shared with it */

static void start_hogs(void)
{
	rounds = mmap(NULL, MAX_HOGS * sizeof(*rounds), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		      -1, 0);
	if (rounds == MAP_FAILED)
		fail("mmap");
	for (long n = 0; n < wanted.hogs; n++) {
		pid_t pid = fork();

		if (pid < 0)
			fail("fork");
		if (pid)
			continue;
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;; rounds[n]++)
			for (volatile int i = 0; i < HOG_ROUND; i++)
				;
	}
}

static uint64_t hog_rounds(void)
{
	uint64_t sum = 0;

	for (long n = 0; n < wanted.hogs; n++)
		sum += rounds[n];
	return sum;
}

/* ---- The GPU ---- */

static int (*synchronize)(void *);
static int (*launch_kernel)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
			    void *, void **, void **);
static int (*all_reduce)(const void *, void *, size_t, int, int, void *, void *);

static void *function(void *library, const char *name)
{
	void *found = library ? dlsym(library, name) : NULL;

	if (!found) {
		fprintf(stderr, "%s\n", dlerror());
		exit(1);
	}
	return found;
}

static void open_gpu(void)
{
	void *cuda = wanted.cuda ? dlopen(wanted.cuda, RTLD_NOW) : NULL;
	void *nccl = wanted.nccl ? dlopen(wanted.nccl, RTLD_NOW) : NULL;
	int (*init)(unsigned) = function(cuda, "cuInit");
	int (*create)(void **, unsigned, int) = function(cuda, "cuCtxCreate_v2");
	char wait[20];
	void *context;

	snprintf(wait, sizeof(wait), "%ld", wanted.sync_us);
	setenv("STUB_CUDA_SYNC_US", wait, 1);
	if (init(0) || create(&context, 0, 0)) {
		fprintf(stderr, "the stub libcuda does not work\n");
		exit(1);
	}
	synchronize = function(cuda, "cuStreamSynchronize");
	launch_kernel = function(cuda, "cuLaunchKernel");
	if (wanted.nccl)
		all_reduce = function(nccl, "ncclAllReduce");
}

/* ---- Data loading ---- */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int ready; /* batches */

static void *loader(void *argument)
{
	unsigned int seed = (unsigned int)(uintptr_t)argument;
	int file = open(wanted.data, O_RDONLY | O_DIRECT | O_CLOEXEC);
	void *buffer = aligned_alloc(4096, READ_BYTES);

	if (file < 0 || !buffer)
		fail(wanted.data);
	for (;;) {
		int64_t end = clock_us(CLOCK_THREAD_CPUTIME_ID) + LOAD_US;

		for (int n = 0; n < READS; n++) {
			off_t place = (off_t)(rand_r(&seed) % DATA_READS) * READ_BYTES;

			if (pread(file, buffer, READ_BYTES, place) != READ_BYTES)
				fail(wanted.data);
		}
		compute_until(end);
		pthread_mutex_lock(&lock);
		while (ready == QUEUE)
			pthread_cond_wait(&changed, &lock);
		ready++;
		pthread_cond_broadcast(&changed);
		pthread_mutex_unlock(&lock);
	}
	return NULL;
}

static void take_batch(void)
{
	if (!wanted.loaders)
		return;
	pthread_mutex_lock(&lock);
	while (!ready)
		pthread_cond_wait(&changed, &lock);
	ready--;
	pthread_cond_broadcast(&changed);
	pthread_mutex_unlock(&lock);
}

/* ---- The collective: a thread that moves the messages, as NCCL's proxy does ---- */

static pthread_cond_t reduced = PTHREAD_COND_INITIALIZER;
static int reducing;
static int64_t late_us; /* of this step; by the one thread that the other waits for */

static void *proxy(void *argument)
{
	(void)argument;
	open_account();
	pthread_mutex_lock(&lock);
	for (;;) {
		while (!reducing)
			pthread_cond_wait(&reduced, &lock);
		pthread_mutex_unlock(&lock);
		for (int n = 0; n < HOPS; n++) {
			struct moment before = moment();

			usleep(HOP_US);
			late_us += overslept_us(before, moment(), HOP_US);
			compute(HOP_CPU_US);
		}
		pthread_mutex_lock(&lock);
		reducing = 0;
		pthread_cond_broadcast(&reduced);
	}
	return NULL;
}

static void collective(void)
{
	if (!all_reduce)
		return;
	all_reduce(NULL, NULL, 0, 0, 0, NULL, NULL);
	pthread_mutex_lock(&lock);
	reducing = 1;
	pthread_cond_broadcast(&reduced);
	while (reducing)
		pthread_cond_wait(&reduced, &lock);
	pthread_mutex_unlock(&lock);
}

/* ---- A step ---- */

static uint32_t step_us[MAX_STEPS], step_late_us[MAX_STEPS], wait_us[MAX_WAITS];
static int steps, waits;

static void launch(void)
{
	compute(wanted.launch_us);
	launch_kernel(NULL, 1, 1, 1, 1, 1, 1, 0, NULL, NULL, NULL);
}

static void wait_for_gpu(void)
{
	struct moment before = moment(), after;

	synchronize(NULL);
	after = moment();
	late_us += overslept_us(before, after, wanted.sync_us);
	if (waits < MAX_WAITS)
		wait_us[waits++] = (uint32_t)(after.waited - before.waited);
}

static void step(void)
{
	int64_t began = clock_us(CLOCK_MONOTONIC);

	late_us = 0;
	for (long n = 0; n < wanted.batches; n++) {
		take_batch();
		launch();
		wait_for_gpu();
		launch();
		wait_for_gpu();
	}
	collective();
	if (wanted.optimizer_us) {
		compute(wanted.optimizer_us);
		launch();
		wait_for_gpu();
	}
	if (steps < MAX_STEPS) {
		step_late_us[steps] = (uint32_t)late_us;
		step_us[steps++] = (uint32_t)(clock_us(CLOCK_MONOTONIC) - began);
	}
}

static int64_t step_until(int64_t end)
{
	steps = waits = 0;
	while (clock_us(CLOCK_MONOTONIC) < end)
		step();
	return clock_us(CLOCK_MONOTONIC);
}

/* ---- */

static void print(const char *name, const uint32_t *values, int count)
{
	printf("\"%s\": [", name);
	for (int n = 0; n < count; n++)
		printf("%s%u", n ? ", " : "", values[n]);
	printf("], ");
}

static void read_arguments(int argc, char **argv)
{
	static const struct {
		const char *name;
		long *number;
		const char **text;
	} known[] = {
		{"seconds", &wanted.seconds, NULL},	{"hogs", &wanted.hogs, NULL},
		{"loaders", &wanted.loaders, NULL},	{"batches", &wanted.batches, NULL},
		{"launch_us", &wanted.launch_us, NULL}, {"optimizer_us", &wanted.optimizer_us, NULL},
		{"sync_us", &wanted.sync_us, NULL},	{"cuda", NULL, &wanted.cuda},
		{"nccl", NULL, &wanted.nccl},		{"data", NULL, &wanted.data},
	};

	for (int i = 1; i < argc; i++) {
		size_t n = 0, length = strcspn(argv[i], "=");

		while (n < sizeof(known) / sizeof(*known) &&
		       (strlen(known[n].name) != length || strncmp(known[n].name, argv[i], length)))
			n++;
		if (n == sizeof(known) / sizeof(*known) || !argv[i][length]) {
			fprintf(stderr, "unknown: %s\n", argv[i]);
			exit(2);
		}
		if (known[n].number)
			*known[n].number = atol(argv[i] + length + 1);
		else
			*known[n].text = argv[i] + length + 1;
	}
	if (wanted.hogs > MAX_HOGS || wanted.loaders > MAX_LOADERS || (wanted.loaders && !wanted.data)) {
		fprintf(stderr, "at most %d hogs and %d loaders, and these need data\n", MAX_HOGS,
			MAX_LOADERS);
		exit(2);
	}
}

int main(int argc, char **argv)
{
	pthread_t thread;
	int64_t began, took, cpu;
	uint64_t hogs;

	read_arguments(argc, argv);
	start_hogs(); /* before there are threads */
	open_gpu();
	open_account();
	for (long n = 0; n < wanted.loaders; n++)
		pthread_create(&thread, NULL, loader, (void *)(uintptr_t)(n + 1));
	if (all_reduce)
		pthread_create(&thread, NULL, proxy, NULL);
	began = step_until(clock_us(CLOCK_MONOTONIC) + WARM_UP_US);
	hogs = hog_rounds();
	cpu = clock_us(CLOCK_PROCESS_CPUTIME_ID);
	took = step_until(began + wanted.seconds * 1000000L) - began;
	cpu = clock_us(CLOCK_PROCESS_CPUTIME_ID) - cpu;
	hogs = hog_rounds() - hogs;
	printf("{");
	print("steps_us", step_us, steps);
	print("late_us", step_late_us, steps);
	print("waits_us", wait_us, waits);
	printf("\"cpu\": %.3f, \"hogs\": %.1f}\n", (double)cpu / (double)took,
	       (double)hogs * 1e6 / (double)took);
	return 0;
}
