/* SPDX-License-Identifier: GPL-2.0-or-later */
/* bench: measure the kernel. A line for each operation: its name, how many there were, and how long
 * all of them took in ns. */

#include "program.h"

const char usage_text[] = "usage: bench [NAME [COUNT]]";

enum { FORK_PAGES = 64 };

static void report(const char *name, unsigned count, u64 begin)
{
    print("%s %u %D\n", name, count, now_ns() - begin);
}

static char *touched_pages(unsigned pages)
{
    char *memory = more_memory(pages * PAGE_SIZE);
    if (!memory) {
        print_error("bench: out of memory\n");
        exit(STATUS_FAILED);
    }
    for (unsigned i = 0; i < pages; i++)
        memory[i * PAGE_SIZE] = 1;
    return memory;
}

/* The shortest system call. */
static void bench_getpid(const char *name, unsigned count)
{
    u64 begin = now_ns();
    for (unsigned i = 0; i < count; i++)
        getpid();
    report(name, count, begin);
}

/* A child of a process with FORK_PAGES pages that ends at once. */
static void bench_fork(const char *name, unsigned count)
{
    touched_pages(FORK_PAGES);
    u64 begin = now_ns();
    for (unsigned i = 0; i < count; i++) {
        int id = must_fork();
        if (id == 0)
            leave(0);
        wait_for(id);
    }
    report(name, count, begin);
}

/* A child that becomes another program, which ends at once. */
static void bench_exec(const char *name, unsigned count)
{
    char *no_words[] = {"true", 0};
    u64 begin = now_ns();
    for (unsigned i = 0; i < count; i++) {
        int id = must_fork();
        if (id == 0)
            leave(execve("bin/true", no_words) != 0);
        wait_for(id);
    }
    report(name, count, begin);
}

/* The first touch of a page. */
static void bench_demand(const char *name, unsigned count)
{
    char *memory = more_memory(count * PAGE_SIZE);
    if (!memory) {
        print_error("bench: out of memory\n");
        exit(STATUS_FAILED);
    }
    u64 begin = now_ns();
    for (unsigned i = 0; i < count; i++)
        memory[i * PAGE_SIZE] = 1;
    report(name, count, begin);
}

/* The first store of a child to a page that it shares with its parent. */
static void bench_cow(const char *name, unsigned count)
{
    char *memory = touched_pages(count);
    int id = must_fork();
    if (id == 0) {
        u64 begin = now_ns();
        for (unsigned i = 0; i < count; i++)
            memory[i * PAGE_SIZE] = 2;
        report(name, count, begin);
        leave(0);
    }
    wait_for(id);
}

/* A byte to another process and back. */
static void bench_pipe(const char *name, unsigned count)
{
    int there[2], back[2];
    char byte = 0;
    if (pipe(there) < 0 || pipe(back) < 0) {
        print_error("bench: no pipe\n");
        exit(STATUS_FAILED);
    }
    int id = must_fork();
    if (id == 0) {
        close(there[1]);
        while (read(there[0], &byte, 1) == 1)
            write(back[1], &byte, 1);
        leave(0);
    }
    u64 begin = now_ns();
    for (unsigned i = 0; i < count; i++) {
        write(there[1], &byte, 1);
        read(back[0], &byte, 1);
    }
    report(name, count, begin);
    close(there[1]);
    wait_for(id);
}

/* Two processes that give way to each other: a switch for each call of either. */
static void bench_switch(const char *name, unsigned count)
{
    int id = must_fork();
    if (id == 0)
        for (;;)
            yield();
    u64 begin = now_ns();
    for (unsigned i = 0; i < count / 2; i++)
        yield();
    report(name, count, begin);
    kill(id, SIGKILL);
    wait_for(id);
}

static const struct {
    const char *name;
    void (*run)(const char *name, unsigned count);
    unsigned count;
} benches[] = {
    {"getpid", bench_getpid, 20000}, {"fork", bench_fork, 200},     {"exec", bench_exec, 100},
    {"demand", bench_demand, 256},   {"cow", bench_cow, 256},       {"pipe", bench_pipe, 1000},
    {"switch", bench_switch, 4000},
};

int main(int count, char **words)
{
    if (count > 3)
        usage();
    int found = 0;
    for (unsigned i = 0; i < sizeof benches / sizeof benches[0]; i++) {
        if (count > 1 && !is_equal(words[1], benches[i].name))
            continue;
        found = 1;
        unsigned operations = count == 3 ? number_of(words[2], 1) : benches[i].count;
        /* In a child, so that each begins with the same memory. */
        int id = must_fork();
        if (id == 0) {
            benches[i].run(benches[i].name, operations);
            exit(0);
        }
        int status = wait_for(id);
        if (status != 0)
            return status;
    }
    if (!found)
        usage();
    return 0;
}
