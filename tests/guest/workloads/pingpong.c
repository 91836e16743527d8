/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * Two processes that wake each other through two pipes: pingpong ROUND_TRIPS. Prints the seconds it took.
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

int main(int argc, char **argv)
{
	long trips = argc == 2 ? atol(argv[1]) : 0;
	struct timespec began, ended;
	int there[2], back[2], status;
	char ball = 0;

	if (trips < 1) {
		fprintf(stderr, "pingpong ROUND_TRIPS\n");
		return 2;
	}
	if (pipe(there) || pipe(back))
		fail("pipe");
	clock_gettime(CLOCK_MONOTONIC, &began);
	switch (fork()) {
	case -1:
		fail("fork");
		break;
	case 0:
		while (trips--)
			if (read(there[0], &ball, 1) != 1 || write(back[1], &ball, 1) != 1)
				fail("pong");
		_exit(0);
	default:
		while (trips--)
			if (write(there[1], &ball, 1) != 1 || read(back[0], &ball, 1) != 1)
				fail("ping");
		if (wait(&status) < 0 || status)
			fail("wait");
	}
	clock_gettime(CLOCK_MONOTONIC, &ended);
	printf("%.6f\n",
	       (double)(ended.tv_sec - began.tv_sec) + (double)(ended.tv_nsec - began.tv_nsec) / 1e9);
	return 0;
}
