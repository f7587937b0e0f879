/* SPDX-License-Identifier: GPL-2.0-or-later */
/* dhcp: get an interface's addresses from a server (RFC 2131). The lease is not renewed. */

#include "network.h"

const char usage_text[] = "usage: dhcp [eth0]";

enum { CLIENT_PORT = 68, SERVER_PORT = 67, TRIES = 4, PATIENCE_MS = 1000 };
enum { LINK_LOOKS = 100, LINK_PAUSE_NS = 10000000 };
enum { DISCOVER = 1, OFFER = 2, REQUEST = 3, ACK = 5, NAK = 6 };
enum {
    OPTION_PAD = 0,
    OPTION_MASK = 1,
    OPTION_ROUTER = 3,
    OPTION_ADDRESS = 50,
    OPTION_LEASE = 51,
    OPTION_KIND = 53,
    OPTION_SERVER = 54,
    OPTION_WISHES = 55,
    OPTION_END = 255,
};
enum { BOOT_REQUEST = 1, BOOT_REPLY = 2, BROADCAST = 0x8000, COOKIE = 0x63825363 };

static struct message {
    unsigned char operation;
    unsigned char hardware;         /* 1: Ethernet */
    unsigned char hardware_length;
    unsigned char hops;
    unsigned transaction;
    unsigned short seconds;
    unsigned short flags;
    unsigned client;                /* addresses: the one that the client has, */
    unsigned yours;                 /* the one that it is given, */
    unsigned next_server;
    unsigned relay;
    unsigned char mac[16];
    unsigned char names[192];
    unsigned cookie;
    unsigned char options[312];
} question, answer;

/* What an answer says, in the order of the network; 0 for nothing. */
struct terms {
    unsigned kind;
    unsigned address;
    unsigned server;
    unsigned mask;
    unsigned router;
    unsigned seconds;
};

static struct network_info info;
static char name[] = "eth0";
static unsigned char *option_end;

static void put_option(int code, const void *value, int bytes)
{
    *option_end++ = code;
    *option_end++ = bytes;
    memcpy(option_end, value, bytes);
    option_end += bytes;
}

static void begin(unsigned char kind)
{
    option_end = question.options;
    put_option(OPTION_KIND, &kind, 1);
}

static void send(int socket)
{
    static const unsigned char wishes[] = {OPTION_MASK, OPTION_ROUTER};
    put_option(OPTION_WISHES, wishes, sizeof wishes);
    *option_end++ = OPTION_END;
    while (option_end < question.options + sizeof question.options)
        *option_end++ = OPTION_PAD;
    int result = sendto(socket, &question, sizeof question, ~0u, SERVER_PORT);
    if (result < 0)
        fail(name, result);
}

/* Read the options that matter; an option that does not fit ends them. */
static void read_options(struct terms *terms, int bytes)
{
    for (int at = 0; at < bytes && answer.options[at] != OPTION_END;) {
        int code = answer.options[at++];
        if (code == OPTION_PAD)
            continue;
        if (at == bytes || at + 1 + answer.options[at] > bytes)
            return;
        int length = answer.options[at++];
        unsigned *to = code == OPTION_MASK ? &terms->mask
                     : code == OPTION_ROUTER ? &terms->router
                     : code == OPTION_LEASE ? &terms->seconds
                     : code == OPTION_SERVER ? &terms->server : 0;
        if (code == OPTION_KIND && length == 1)
            terms->kind = answer.options[at];
        else if (to && length >= 4)
            memcpy(to, &answer.options[at], 4);
        at += length;
    }
}

/* Wait for an answer to our question. Return 0 where there is none in time. */
static int receive(int socket, struct terms *terms)
{
    const int least = sizeof answer - sizeof answer.options;
    u64 end = now_ns() + (u64)PATIENCE_MS * 1000000;
    while (now_ns() < end) {
        int bytes = recvfrom(socket, &answer, sizeof answer, 0, 0);
        if (bytes == -EAGAIN)
            return 0;
        if (bytes < 0)
            fail(name, bytes);
        if (bytes < least || answer.operation != BOOT_REPLY || answer.cookie != swap32(COOKIE)
            || answer.transaction != question.transaction)
            continue;
        memset(terms, 0, sizeof *terms);
        terms->address = answer.yours;
        read_options(terms, bytes - least);
        return 1;
    }
    return 0;
}

/* Ask for an offer, and take it. Return 0 where nobody answers. */
static int negotiate(int socket, struct terms *terms)
{
    begin(DISCOVER);
    send(socket);
    do {
        if (!receive(socket, terms))
            return 0;
    } while (terms->kind != OFFER || !terms->server);
    unsigned address = terms->address, server = terms->server;
    begin(REQUEST);
    put_option(OPTION_ADDRESS, &address, 4);
    put_option(OPTION_SERVER, &server, 4);
    send(socket);
    do {
        if (!receive(socket, terms) || terms->kind == NAK)
            return 0;
    } while (terms->kind != ACK || terms->server != server);
    return 1;
}

/* Wait until the interface is up: at boot it may take a moment. */
static int wait_for_link(int number)
{
    int error = 0;
    for (int looks = 0; looks < LINK_LOOKS; looks++) {
        error = network(NETWORK_GET, number, &info);
        if (error == 0 && info.state == NETWORK_UP)
            return 0;
        sleep_ns(LINK_PAUSE_NS);
    }
    return error;
}

int main(int count, char **words)
{
    if (count > 2)
        usage();
    int number = count == 2 ? interface_of(words[1]) : 0;
    if (number < 0)
        usage();
    name[3] += number;
    int error = wait_for_link(number);
    if (error < 0)
        fail(name, error);
    int socket = must_socket(IPPROTO_UDP);
    error = setsockopt(socket, SO_BINDTODEVICE, name, sizeof name);
    if (error < 0)
        fail(name, error);
    error = bind(socket, 0, CLIENT_PORT);
    if (error < 0)
        fail("dhcp", error);
    set_patience(socket, PATIENCE_MS);
    question.operation = BOOT_REQUEST;
    question.hardware = 1;
    question.hardware_length = 6;
    question.flags = swap16(BROADCAST);
    question.cookie = swap32(COOKIE);
    memcpy(question.mac, info.mac, 6);
    seed(now_ns() ^ info.mac[5] << 24 ^ info.mac[4] << 16);
    for (int tries = 0; tries < TRIES; tries++) {
        struct terms terms;
        question.transaction = random_number();
        if (!negotiate(socket, &terms))
            continue;
        info.address = terms.address;
        info.mask = terms.mask;
        info.gateway = terms.router;
        error = network(NETWORK_SET, number, &info);
        if (error < 0)
            fail(name, error);
        print("%s: ", name);
        print_address(swap32(terms.address));
        print(" from ");
        print_address(swap32(terms.server));
        print(", for %u s\n", swap32(terms.seconds));
        return 0;
    }
    print_error("dhcp: nobody answers\n");
    return STATUS_FAILED;
}
