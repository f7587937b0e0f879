/* SPDX-License-Identifier: GPL-2.0-or-later */
/* udpsend: send datagrams, and print what comes back. */

#include "network.h"

const char usage_text[] = "usage: udpsend ADDRESS PORT TEXT | ADDRESS PORT -n COUNT [-s BYTES]";

enum { PATIENCE_MS = 1000 };

static char data[DATAGRAM_MAX], answer[DATAGRAM_MAX + 1];

/* Send one datagram and wait for one. Return its bytes, or 0 for none. */
static int exchange(int socket, int bytes)
{
    int result = write(socket, data, bytes);
    if (result < 0)
        fail("udpsend", result);
    result = read(socket, answer, DATAGRAM_MAX);
    if (result < 0 && result != -EAGAIN)
        fail("udpsend", result);
    return result < 0 ? 0 : result;
}

static int say(int socket, const char *text)
{
    int bytes = 0;
    for (; text[bytes] && bytes < DATAGRAM_MAX; bytes++)
        data[bytes] = text[bytes];
    int result = exchange(socket, bytes);
    if (!result) {
        print_error("udpsend: no answer\n");
        return STATUS_FAILED;
    }
    answer[result] = 0;
    print("%s\n", answer);
    return 0;
}

static int count_round_trips(int socket, unsigned times, unsigned size)
{
    unsigned same = 0;
    u64 start = now_ns();
    for (unsigned i = 0; i < times; i++) {
        *(unsigned *)data = i;
        int bytes = exchange(socket, size);
        same += bytes == (int)size && *(unsigned *)answer == i;
    }
    u64 ns = now_ns() - start;
    print("%u sent, %u came back, %u us each\n", times, same,
          (unsigned)divide(divide(ns, 1000), times));
    return same == times ? 0 : STATUS_FAILED;
}

int main(int count, char **words)
{
    if (count < 4)
        usage();
    int socket = must_socket(IPPROTO_UDP);
    int error = connect(socket, address_of(words[1]), port_of(words[2]));
    if (error < 0)
        fail("udpsend", error);
    set_patience(socket, PATIENCE_MS);
    if (count == 4)
        return say(socket, words[3]);
    unsigned times = 1, size = 64;
    for (int at = 3; at < count; at += 2) {
        if (at + 1 == count)
            usage();
        if (is_equal(words[at], "-n"))
            times = number_of(words[at + 1], 1);
        else if (is_equal(words[at], "-s"))
            size = number_of(words[at + 1], sizeof(unsigned));
        else
            usage();
    }
    if (size > DATAGRAM_MAX)
        usage();
    return count_round_trips(socket, times, size);
}
