/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * Many threads that sleep, and a few that do not: threads PROCESSES THREADS ACTIVE
 *
 * Each process has THREADS threads. In ACTIVE of the processes one of them wakes ten times a second and does
 * next to nothing. Returns once all are there; they stay until they are killed.
 */
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
	STACK_BYTES = 64 << 10, /* of which two pages are ever used */
	PERIOD_US = 100000,
};

static void fail(const char *what, int error)
{
	fprintf(stderr, "%s: %s\n", what, strerror(error));
	exit(1);
}

static void *sleeper(void *argument)
{
	(void)argument;
	for (;;)
		pause();
	return NULL;
}

/* One mapping for all stacks: a process may have 65,530 of them. */
static void start_sleepers(long count)
{
	pthread_attr_t attributes;
	pthread_t thread;
	char *stacks;
	int error;

	if (!count)
		return;
	stacks = mmap(NULL, (size_t)count * STACK_BYTES, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (stacks == MAP_FAILED)
		fail("mmap", errno);
	pthread_attr_init(&attributes);
	for (long n = 0; n < count; n++) {
		pthread_attr_setstack(&attributes, stacks + n * STACK_BYTES, STACK_BYTES);
		error = pthread_create(&thread, &attributes, sleeper, NULL);
		if (error)
			fail("pthread_create", error);
	}
}

static void live(long threads, int active, int ready)
{
	char one = 1;

	start_sleepers(threads - 1);
	if (write(ready, &one, 1) != 1)
		fail("write", errno);
	close(ready);
	while (active)
		usleep(PERIOD_US);
	sleeper(NULL);
}

int main(int argc, char **argv)
{
	long processes, threads, active;
	int ready[2];
	char one;

	if (argc != 4) {
		fprintf(stderr, "threads PROCESSES THREADS ACTIVE\n");
		return 2;
	}
	processes = atol(argv[1]);
	threads = atol(argv[2]);
	active = atol(argv[3]);
	if (pipe(ready))
		fail("pipe", errno);
	for (long n = 0; n < processes; n++) {
		pid_t pid = fork();

		if (pid < 0)
			fail("fork", errno);
		if (!pid) {
			close(ready[0]);
			live(threads, n < active, ready[1]);
		}
	}
	close(ready[1]);
	for (long n = 0; n < processes; n++)
		if (read(ready[0], &one, 1) != 1)
			fail("a process ended before its threads were there", EPIPE);
	return 0;
}
