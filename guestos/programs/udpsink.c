/* SPDX-License-Identifier: GPL-2.0-or-later */
/* udpsink: count the datagrams of one pktgen, and what is missing of them. */

#include "stream.h"

const char usage_text[] = "usage: udpsink [PORT]";

enum { PATIENCE_MS = 2000 };        /* after the last one that came */

static char data[BATCH][DATAGRAM_MAX] __attribute__((aligned(16)));
static struct iovec parts[BATCH];
static struct mmsghdr messages[BATCH];
static unsigned received, bytes, gaps, broken, next, total;
static int is_over;

static void count_one(const struct stream *head, unsigned size)
{
    if (size < sizeof *head || head->magic + head->number + head->total + head->sum != 0) {
        broken++;
        return;
    }
    total = head->total;
    if (head->number >= total) {
        is_over = 1;
        return;
    }
    received++;
    bytes = size;
    if (head->number != next)
        gaps++;
    next = head->number + 1;
}

int main(int count, char **words)
{
    if (count > 2)
        usage();
    for (int i = 0; i < BATCH; i++) {
        parts[i].base = data[i];
        parts[i].length = DATAGRAM_MAX;
        messages[i].parts = &parts[i];
        messages[i].part_count = 1;
    }
    int socket = must_socket(IPPROTO_UDP);
    int error = bind(socket, 0, count == 2 ? port_of(words[1]) : 9);
    if (error < 0)
        fail("udpsink", error);
    u64 start = 0, end = 0;
    unsigned calls = 0;
    while (!is_over) {
        int came = recvmmsg(socket, messages, BATCH);
        if (came == -EAGAIN)
            break;
        if (came < 0)
            fail("udpsink", came);
        end = now_ns();
        calls++;
        if (!start) {
            start = end;
            set_patience(socket, PATIENCE_MS);
        }
        for (int i = 0; i < came; i++)
            count_one((const struct stream *)data[i], messages[i].length);
    }
    unsigned us = divide(end - start, 1000);
    print("%u of %u datagrams of %u bytes, %u gaps, %u broken", received, total, bytes, gaps,
          broken);
    print("; %u us, %u a second, %u a call\n", us,
          (unsigned)divide((u64)received * 1000000, us ? us : 1), received / (calls ? calls : 1));
    return received == total && !gaps && !broken ? 0 : STATUS_FAILED;
}
