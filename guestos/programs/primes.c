/* SPDX-License-Identifier: GPL-2.0-or-later */
/* primes: count the prime numbers up to a limit, with a sieve in memory from brk. */

#include "program.h"

const char usage_text[] = "usage: primes [LIMIT]";

int main(int count, char **words)
{
    if (count > 2)
        usage();
    unsigned limit = count == 2 ? number_of(words[1], 2) : 100000;
    char *is_composite = more_memory(limit + 1);    /* zeros */
    if (!is_composite) {
        print_error("primes: out of memory\n");
        return STATUS_FAILED;
    }
    unsigned primes = 0, last = 0;
    for (unsigned n = 2; n <= limit; n++) {
        if (is_composite[n])
            continue;
        primes++;
        last = n;
        for (u64 multiple = (u64)n * n; multiple <= limit; multiple += n)
            is_composite[multiple] = 1;
    }
    print("%u primes up to %u, the last is %u\n", primes, limit, last);
    return 0;
}
