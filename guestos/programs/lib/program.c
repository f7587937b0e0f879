/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a program in C begins with, and what it needs of the kernel. */

#include "program.h"

/* The kernel starts a program with the count of words at esp, which is aligned to 16; a C function
 * finds esp + 4 aligned so. */
__asm__(".globl _start\n"
        "_start:\n"
        "    xorl %ebp, %ebp\n"
        "    movl (%esp), %eax\n"
        "    leal 4(%esp), %edx\n"
        "    subl $8, %esp\n"
        "    pushl %edx\n"
        "    pushl %eax\n"
        "    call main\n"
        "    pushl %eax\n"
        "    call exit\n");

void exit(int status)
{
    flush();
    leave(status);
}

void leave(int status)
{
    for (;;)
        system_call(SYS_exit, status, 0, 0);
}

void usage(void)
{
    print_error("%s\n", usage_text);
    exit(STATUS_USAGE);
}

int must_fork(void)
{
    flush();
    int id = fork();
    if (id < 0) {
        print_error("fork: error %d\n", -id);
        exit(STATUS_FAILED);
    }
    return id;
}

int wait_for(int id)
{
    int word = 0;
    if (waitpid(id, &word, 0) != id)
        return -1;
    int signal = word & 0x7F;
    return signal ? 128 + signal : word >> 8 & 0xFF;
}

void sleep_ns(u64 ns)
{
    struct timespec time = {divide(ns, 1000000000), 0};
    time.nanoseconds = ns - (u64)time.seconds * 1000000000;
    system_call(SYS_nanosleep, (int)&time, 0, 0);
}

u64 now_ns(void)
{
    struct timespec time = {0, 0};
    system_call(SYS_clock_gettime, CLOCK_MONOTONIC, (int)&time, 0);
    return (u64)time.seconds * 1000000000 + time.nanoseconds;
}

void *more_memory(unsigned bytes)
{
    static unsigned end;
    if (!end)
        end = system_call(SYS_brk, 0, 0, 0);
    if (system_call(SYS_brk, end + bytes, 0, 0) != (int)(end + bytes))
        return 0;
    end += bytes;
    return (void *)(end - bytes);
}

u64 divide(u64 value, unsigned by)
{
    unsigned high = value >> 32, low = value, quotient;
    unsigned rest = high % by;
    __asm__("divl %3" : "=a"(quotient), "+d"(rest) : "a"(low), "r"(by) : "cc");
    return (u64)(high / by) << 32 | quotient;
}

unsigned number_of(const char *word, unsigned least)
{
    unsigned value = 0;
    if (!*word)
        usage();
    for (; *word; word++) {
        if (*word < '0' || *word > '9' || value > 99999999)
            usage();
        value = value * 10 + (*word - '0');
    }
    if (value < least)
        usage();
    return value;
}

int is_equal(const char *a, const char *b)
{
    while (*a && *a == *b)
        a++, b++;
    return *a == *b;
}

void *memset(void *at, int byte, unsigned bytes)
{
    void *to = at;
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(bytes) : "a"(byte) : "memory");
    return at;
}

void *memcpy(void *at, const void *from, unsigned bytes)
{
    void *to = at;
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes) : : "memory");
    return at;
}

static unsigned random_state = 1;

void seed(unsigned number)
{
    random_state = number * 2654435761u | 1;    /* spread: neighbours give different numbers */
}

unsigned random_number(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    random_state ^= random_state << 5;
    return random_state;
}

unsigned random_below(unsigned bound)
{
    return random_number() % bound;
}
