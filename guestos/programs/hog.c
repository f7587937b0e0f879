/* SPDX-License-Identifier: GPL-2.0-or-later */
/* hog: use memory until there is no more, or up to so many pages; by ending it gives all back. */

#include "program.h"

const char usage_text[] = "usage: hog [PAGES]";

int main(int count, char **words)
{
    if (count > 2)
        usage();
    unsigned limit = count == 2 ? number_of(words[1], 1) : ~0u;
    unsigned pages = 0;
    int ends[2];
    if (pipe(ends) < 0) {
        print_error("hog: no pipe\n");
        return STATUS_FAILED;
    }
    while (pages < limit) {
        char *page = more_memory(PAGE_SIZE);
        /* The kernel finds the page for this read, and refuses where there is none; a store of ours
         * would end us. */
        if (!page || write(ends[1], "x", 1) != 1 || read(ends[0], page, 1) != 1)
            break;
        pages++;
    }
    print("%u pages used\n", pages);
    return pages < limit && limit != ~0u ? STATUS_FAILED : 0;
}
