/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The system calls by their names. */

#include "program.h"

int fork(void)
{
    return system_call(SYS_fork, 0, 0, 0);
}

int read(int file, void *to, int bytes)
{
    return system_call(SYS_read, file, (int)to, bytes);
}

int write(int file, const void *from, int bytes)
{
    return system_call(SYS_write, file, (int)from, bytes);
}

int open(const char *path, int flags)
{
    return system_call(SYS_open, (int)path, flags, 0);
}

int close(int file)
{
    return system_call(SYS_close, file, 0, 0);
}

int pipe(int ends[2])
{
    return system_call(SYS_pipe, (int)ends, 0, 0);
}

int getpid(void)
{
    return system_call(SYS_getpid, 0, 0, 0);
}

int kill(int id, int signal)
{
    return system_call(SYS_kill, id, signal, 0);
}

int yield(void)
{
    return system_call(SYS_sched_yield, 0, 0, 0);
}

int execve(const char *path, char **words)
{
    return system_call(SYS_execve, (int)path, (int)words, 0);
}

int waitpid(int id, int *word, int options)
{
    return system_call(SYS_waitpid, id, (int)word, options);
}
