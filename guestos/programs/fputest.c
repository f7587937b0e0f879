/* SPDX-License-Identifier: GPL-2.0-or-later */
/* fputest: several processes compute with x87 and SSE registers for so long that they are preempted
 * many times; each must come to the result that it comes to alone. */

#include "program.h"

enum { PROCESSES_MAX = 16 };

const char usage_text[] = "usage: fputest [PROCESSES [ROUNDS]]";

/* Sum x^k in st(0) with x in st(1), all the time on the register stack. */
static u64 sum_x87(int number, unsigned rounds)
{
    double factor = 1.0 - 1.0 / (number + 3), sum;
    __asm__ volatile("fldl %2\n"
                     "fldz\n"
                     "1: fmul %%st(1), %%st\n"
                     "fld1\n"
                     "faddp\n"
                     "decl %1\n"
                     "jnz 1b\n"
                     "fstpl %0\n"
                     "fstp %%st(0)\n"
                     : "=m"(sum), "+r"(rounds)
                     : "m"(factor)
                     : "cc", "memory");
    union {
        double number;
        u64 bits;
    } result = {sum};
    return result.bits;
}

/* The same kind of thing with xmm0 to xmm7, each its own number. */
__attribute__((target("sse2"))) static u64 sum_sse(int number, unsigned rounds)
{
    unsigned start[4] = {number, number * 3 + 1, number * 5 + 2, number * 7 + 3};
    unsigned out[4];
    __asm__ volatile("movups %2, %%xmm0\n"
                     "movaps %%xmm0, %%xmm7\n"
                     "1: paddd %%xmm7, %%xmm0\n"
                     "pxor %%xmm0, %%xmm7\n"
                     "pshufd $0x93, %%xmm0, %%xmm0\n"
                     "decl %1\n"
                     "jnz 1b\n"
                     "paddd %%xmm7, %%xmm0\n"
                     "movups %%xmm0, %0\n"
                     : "=m"(out), "+r"(rounds)
                     : "m"(start)
                     : "cc", "memory");
    return ((u64)(out[0] ^ out[1]) << 32) | (out[2] ^ out[3]);
}

static u64 compute(int number, unsigned rounds)
{
    return sum_x87(number, rounds) ^ sum_sse(number, rounds);
}

int main(int count, char **words)
{
    if (count > 3)
        usage();
    unsigned processes = count >= 2 ? number_of(words[1], 1) : 4;
    unsigned rounds = count == 3 ? number_of(words[2], 1) : 200000;
    u64 alone[PROCESSES_MAX];
    int ids[PROCESSES_MAX], status = 0;
    if (processes > PROCESSES_MAX)
        usage();
    for (unsigned i = 0; i < processes; i++)
        alone[i] = compute(i, rounds);
    for (unsigned i = 0; i < processes; i++) {
        ids[i] = must_fork();
        if (ids[i] == 0)
            leave(compute(i, rounds) != alone[i]);
    }
    for (unsigned i = 0; i < processes; i++)
        if (wait_for(ids[i]) != 0)
            status = STATUS_FAILED;
    if (status)
        print_error("fputest: a process has lost its registers\n");
    else
        print("%u processes kept their registers\n", processes);
    return status;
}
