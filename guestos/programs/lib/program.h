/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a program in C has: system calls, text, memory. See program.c; no header of the host. */
#ifndef PROGRAM_H
#define PROGRAM_H

#include "syscalls.h"

typedef unsigned long long u64;

enum { STATUS_FAILED = 1, STATUS_USAGE = 2 };

/* A system call as it is: the result, from -4095 to -1 for an error. */
static inline int system_call(int number, int a, int b, int c)
{
    int result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c) : "memory");
    return result;
}

/* The calls by their names, as Unix has them. */
int fork(void);
int read(int file, void *to, int bytes);
int write(int file, const void *from, int bytes);
int open(const char *path, int flags);
int close(int file);
int pipe(int ends[2]);
int getpid(void);
int kill(int id, int signal);
int yield(void);
int execve(const char *path, char **words);
int waitpid(int id, int *word, int options);

/* End the program, with what was printed. */
void exit(int status) __attribute__((noreturn));

/* End at once, in a child: nothing is printed twice. */
void leave(int status) __attribute__((noreturn));

/* Fork, and end the program with a message where that cannot be done. */
int must_fork(void);

/* Wait for a child; its status, or 128 + the signal that ended it. */
int wait_for(int id);

/* Sleep; the clock, in ns since some moment. */
void sleep_ns(u64 ns);
u64 now_ns(void);

/* The quotient; the compiler's own would need its library. */
u64 divide(u64 value, unsigned by);

/* Get memory behind the program; 0 when there is no more. It is given back with the process. */
void *more_memory(unsigned bytes);

/* Print: %d %u %x %c %s %%, and %D for a u64. Kept until a line is complete. */
void print(const char *format, ...);
void print_error(const char *format, ...);
void flush(void);

/* Say how the program is called (usage_text), and end it. */
void usage(void) __attribute__((noreturn));
extern const char usage_text[];

/* Read a word as a number from least up; what is none ends the program. */
unsigned number_of(const char *word, unsigned least);

int is_equal(const char *a, const char *b);
void *memset(void *at, int byte, unsigned bytes);
void *memcpy(void *to, const void *from, unsigned bytes);

/* A generator of random numbers (xorshift): the same seed, the same numbers. */
void seed(unsigned number);
unsigned random_number(void);
unsigned random_below(unsigned bound);

int main(int count, char **words);

#endif
