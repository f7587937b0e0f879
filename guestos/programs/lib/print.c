/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Text out. It is kept until a line is complete, so that lines of programs that run at once are not
 * mixed; a file that takes no more ends the program. */

#include "program.h"

static struct {
    int file;
    int length;
    char text[256];
} output = {STDOUT, 0, ""};

void flush(void)
{
    int done = 0;
    while (done < output.length) {
        int bytes = write(output.file, output.text + done, output.length - done);
        if (bytes <= 0)
            leave(STATUS_FAILED);
        done += bytes;
    }
    output.length = 0;
}

static void put(char letter)
{
    output.text[output.length++] = letter;
    if (letter == '\n' || output.length == sizeof output.text)
        flush();
}

static void put_number(u64 value, unsigned base)
{
    char digits[20];
    int count = 0;
    do {
        u64 rest = divide(value, base);
        digits[count++] = "0123456789abcdef"[(unsigned)(value - rest * base)];
        value = rest;
    } while (value);
    while (count)
        put(digits[--count]);
}

static void put_signed(int value)
{
    if (value < 0)
        put('-');
    put_number(value < 0 ? -(unsigned)value : (unsigned)value, 10);
}

static void put_format(const char *format, __builtin_va_list values)
{
    for (; *format; format++) {
        if (*format != '%') {
            put(*format);
            continue;
        }
        switch (*++format) {
        case 'd':
            put_signed(__builtin_va_arg(values, int));
            break;
        case 'u':
            put_number(__builtin_va_arg(values, unsigned), 10);
            break;
        case 'x':
            put_number(__builtin_va_arg(values, unsigned), 16);
            break;
        case 'D':
            put_number(__builtin_va_arg(values, u64), 10);
            break;
        case 'c':
            put(__builtin_va_arg(values, int));
            break;
        case 's':
            for (const char *text = __builtin_va_arg(values, const char *); *text; text++)
                put(*text);
            break;
        default:
            put(*format);
        }
    }
}

void print(const char *format, ...)
{
    __builtin_va_list values;
    __builtin_va_start(values, format);
    put_format(format, values);
    __builtin_va_end(values);
}

void print_error(const char *format, ...)
{
    __builtin_va_list values;
    __builtin_va_start(values, format);
    flush();
    output.file = STDERR;
    put_format(format, values);
    flush();
    output.file = STDOUT;
    __builtin_va_end(values);
}
