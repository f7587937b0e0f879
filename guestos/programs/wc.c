/* SPDX-License-Identifier: GPL-2.0-or-later */
/* wc: count lines, words and bytes of a file, or of what comes in. */

#include "program.h"

const char usage_text[] = "usage: wc [FILE]";

int main(int count, char **words)
{
    if (count > 2)
        usage();
    int file = count == 2 ? open(words[1], O_RDONLY) : STDIN;
    if (file < 0) {
        print_error("wc: %s: no such file\n", words[1]);
        return STATUS_FAILED;
    }
    static char buffer[1024];
    unsigned lines = 0, starts = 0, total = 0;
    int bytes, is_in_word = 0;
    while ((bytes = read(file, buffer, sizeof buffer)) > 0) {
        total += bytes;
        for (int i = 0; i < bytes; i++) {
            int is_blank = buffer[i] == ' ' || buffer[i] == '\n' || buffer[i] == '\t';
            lines += buffer[i] == '\n';
            starts += !is_blank && !is_in_word;
            is_in_word = !is_blank;
        }
    }
    if (bytes < 0) {
        print_error("wc: read: error %d\n", -bytes);
        return STATUS_FAILED;
    }
    print("%u lines, %u words, %u bytes\n", lines, starts, total);
    return 0;
}
