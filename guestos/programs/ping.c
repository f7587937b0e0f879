/* SPDX-License-Identifier: GPL-2.0-or-later */
/* ping: ask a station whether it is there, and how long the answer takes. */

#include "network.h"

const char usage_text[] = "usage: ping [-c COUNT] [-i MS] [-s BYTES] ADDRESS";

enum { ECHO = 8, PATIENCE_MS = 1000 };

static const u64 NO_ANSWER = ~0ull;

struct echo {
    unsigned char type;
    unsigned char code;
    unsigned short checksum;        /* the kernel's */
    unsigned short identifier;      /* the kernel's */
    unsigned short sequence;
    unsigned char data[1472];
};

static struct echo question = {.type = ECHO}, answer;

/* Send one question, and wait for its answer. Return the ns that it took, or NO_ANSWER. */
static u64 ask(int socket, unsigned address, unsigned sequence, int bytes)
{
    question.sequence = swap16(sequence);
    u64 start = now_ns();
    int result = sendto(socket, &question, bytes, address, 0);
    if (result < 0)
        fail("ping", result);
    for (;;) {
        unsigned from;
        result = recvfrom(socket, &answer, sizeof answer, &from, 0);
        u64 end = now_ns();
        if (result == -EAGAIN)
            return NO_ANSWER;
        if (result < 0)
            fail("ping", result);
        if (result != bytes || from != address || answer.sequence != question.sequence)
            continue;               /* a late one */
        for (int i = 0; i < bytes - 8; i++)
            if (answer.data[i] != question.data[i]) {
                print_error("ping: the answer says something else\n");
                exit(STATUS_FAILED);
            }
        return end - start;
    }
}

static void print_us(u64 ns)
{
    unsigned us = divide(ns, 1000), rest = divide(ns, 10) - (u64)us * 100;
    print("%u.%u%u", us, rest / 10, rest % 10);
}

int main(int count, char **words)
{
    unsigned times = 4, pause_ms = 0, size = 56;
    int at = 1;
    for (; at + 1 < count && words[at][0] == '-'; at += 2) {
        if (is_equal(words[at], "-c"))
            times = number_of(words[at + 1], 1);
        else if (is_equal(words[at], "-i"))
            pause_ms = number_of(words[at + 1], 0);
        else if (is_equal(words[at], "-s"))
            size = number_of(words[at + 1], 0);
        else
            usage();
    }
    if (at + 1 != count || size > sizeof question.data)
        usage();
    unsigned address = address_of(words[at]);
    int socket = must_socket(IPPROTO_ICMP);
    set_patience(socket, PATIENCE_MS);
    for (unsigned i = 0; i < size; i++)
        question.data[i] = i;
    u64 least = NO_ANSWER, most = 0, sum = 0;
    unsigned answers = 0;
    for (unsigned sequence = 1; sequence <= times; sequence++) {
        u64 ns = ask(socket, address, sequence, size + 8);
        if (ns != NO_ANSWER) {
            answers++;
            sum += ns;
            least = ns < least ? ns : least;
            most = ns > most ? ns : most;
        }
        if (pause_ms && sequence < times)
            sleep_ns((u64)pause_ms * 1000000);
    }
    print("%u sent, %u answered\n", times, answers);
    if (!answers)
        return STATUS_FAILED;
    print("round trip min/avg/max ");
    print_us(least);
    print("/");
    print_us(divide(sum, answers));
    print("/");
    print_us(most);
    print(" us\n");
    return answers == times ? 0 : STATUS_FAILED;
}
