/* SPDX-License-Identifier: GPL-2.0-or-later */
/* stress: run other programs at random for some seconds, several at once, and end some of them at
 * random, too. What they print goes nowhere. The same seed makes the same choices. */

#include "program.h"

const char usage_text[] = "usage: stress SECONDS [SEED]";

enum { AT_ONCE = 6, PATIENCE = 40 };

static char *const lines[] = {
    "true",
    "false",
    "nosuch",
    "forktest 10",
    "cowtest",
    "primes 5000 | wc",
    "echo a b c | cat | cat | wc",
    "hog 60",
    "hog 10 & hog 20 & wait",
    "fputest 2 5000",
    "sleep 0.02",
    "sleep 0.03 | cat",
    "spin",
    "faulttest null",
    "ps | wc; mem; ls | cat",
    "sh -c 'sh -c true; false | true'",
    "sleep 5 &",
};

static int start(void)
{
    char *words[] = {"sh", "-c", lines[random_below(sizeof lines / sizeof lines[0])], 0};
    int ends[2];
    int id = must_fork();
    if (id) {
        /* The child does it, too: it must be done before we end the group, or would not find it. */
        system_call(SYS_setpgid, id, id, 0);
        return id;
    }
    /* A pipe that nobody reads any more takes what they say; the first line ends who writes it. */
    if (pipe(ends) == 0) {
        system_call(SYS_dup2, ends[1], STDOUT, 0);
        system_call(SYS_dup2, ends[1], STDERR, 0);
        system_call(SYS_dup2, ends[0], STDIN, 0);
    }
    system_call(SYS_setpgid, 0, 0, 0);
    leave(execve("bin/sh", words));
}

int main(int count, char **words)
{
    if (count != 2 && count != 3)
        usage();
    u64 end = now_ns() + (u64)number_of(words[1], 1) * 1000000000;
    seed(count == 3 ? number_of(words[2], 0) : 1);
    int ids[AT_ONCE] = {0}, patience[AT_ONCE] = {0};
    unsigned started = 0, killed = 0;
    for (unsigned i = 0; now_ns() < end; i = (i + 1) % AT_ONCE) {
        if (ids[i] && waitpid(ids[i], 0, WNOHANG) == ids[i]) {
            kill(-ids[i], SIGKILL);     /* its group: what it has left behind */
            ids[i] = 0;
        } else if (ids[i] && --patience[i] == 0) {
            kill(-ids[i], SIGKILL);
            wait_for(ids[i]);
            ids[i] = 0;
            killed++;
        }
        if (!ids[i]) {
            patience[i] = 1 + random_below(PATIENCE);
            ids[i] = start();
            started++;
        }
        sleep_ns(2000000);
    }
    for (unsigned i = 0; i < AT_ONCE; i++) {
        if (!ids[i])
            continue;
        kill(-ids[i], SIGKILL);
        wait_for(ids[i]);
    }
    print("%u commands run, %u of them ended from outside\n", started, killed);
    return 0;
}
