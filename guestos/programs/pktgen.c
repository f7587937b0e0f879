/* SPDX-License-Identifier: GPL-2.0-or-later */
/* pktgen: send numbered datagrams as fast as they go. */

#include "stream.h"

const char usage_text[] = "usage: pktgen ADDRESS PORT [-n COUNT] [-s BYTES]";

enum { LAST_TIMES = 3 };            /* the last number comes several times: a sink waits for it */

static char data[BATCH][DATAGRAM_MAX] __attribute__((aligned(16)));
static struct iovec parts[BATCH];
static struct mmsghdr messages[BATCH];

static void send_batch(int socket, unsigned first, unsigned count, unsigned total)
{
    for (unsigned i = 0; i < count; i++) {
        struct stream *head = (struct stream *)data[i];
        head->number = first + i;
        head->total = total;
        head->sum = -(STREAM_MAGIC + head->number + total);
    }
    for (unsigned done = 0; done < count;) {
        int sent = sendmmsg(socket, messages + done, count - done);
        if (sent < 0)
            fail("pktgen", sent);
        done += sent;
    }
}

int main(int count, char **words)
{
    unsigned total = 1000, size = 64;
    if (count < 3)
        usage();
    for (int at = 3; at < count; at += 2) {
        if (at + 1 == count)
            usage();
        if (is_equal(words[at], "-n"))
            total = number_of(words[at + 1], 1);
        else if (is_equal(words[at], "-s"))
            size = number_of(words[at + 1], sizeof(struct stream));
        else
            usage();
    }
    if (size > DATAGRAM_MAX)
        usage();
    for (int i = 0; i < BATCH; i++) {
        for (unsigned j = sizeof(struct stream); j < size; j++)
            data[i][j] = j;
        ((struct stream *)data[i])->magic = STREAM_MAGIC;
        parts[i].base = data[i];
        parts[i].length = size;
        messages[i].parts = &parts[i];
        messages[i].part_count = 1;
    }
    int socket = must_socket(IPPROTO_UDP);
    int error = connect(socket, address_of(words[1]), port_of(words[2]));
    if (error < 0)
        fail("pktgen", error);
    u64 start = now_ns();
    for (unsigned number = 0; number < total; number += BATCH)
        send_batch(socket, number, total - number < BATCH ? total - number : BATCH, total);
    unsigned us = divide(now_ns() - start, 1000);
    print("%u datagrams of %u bytes in %u us", total, size, us);
    print(", %u a second\n", (unsigned)divide((u64)total * 1000000, us ? us : 1));
    for (int i = 0; i < LAST_TIMES; i++)
        send_batch(socket, total, 1, total);
    return 0;
}
