/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The contract between the kernel and its programs, for C; see syscalls.inc. */
#ifndef SYSCALLS_H
#define SYSCALLS_H

enum {
    SYS_exit = 1,
    SYS_fork = 2,
    SYS_read = 3,
    SYS_write = 4,
    SYS_open = 5,
    SYS_close = 6,
    SYS_waitpid = 7,
    SYS_execve = 11,
    SYS_getpid = 20,
    SYS_kill = 37,
    SYS_pipe = 42,
    SYS_brk = 45,
    SYS_setpgid = 57,
    SYS_dup2 = 63,
    SYS_getppid = 64,
    SYS_reboot = 88,
    SYS_sched_yield = 158,
    SYS_nanosleep = 162,
    SYS_clock_gettime = 265,
    SYS_processes = 512,
    SYS_memory = 513,
    SYS_vcpu = 514,
    SYS_balloon = 515,
    SYS_directory = 516,
};

enum { STDIN, STDOUT, STDERR };
enum { O_RDONLY, O_WRONLY, O_RDWR };
enum { WNOHANG = 1 };
enum {
    SIGINT = 2,
    SIGILL = 4,
    SIGTRAP = 5,
    SIGBUS = 7,
    SIGFPE = 8,
    SIGKILL = 9,
    SIGSEGV = 11,
    SIGTERM = 15,
};
enum { CLOCK_MONOTONIC = 1 };
enum { ENOENT = 2, ENOMEM = 12, EFAULT = 14, ENOSYS = 38 };
enum { PAGE_SIZE = 4096 };

struct timespec {
    unsigned seconds;
    unsigned nanoseconds;
};

struct memory_info {
    unsigned total;
    unsigned free;
    unsigned tables;
    unsigned ballooned;
    unsigned shared;
    unsigned processes;
};

#endif
