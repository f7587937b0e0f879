// SPDX-License-Identifier: GPL-2.0-or-later
// UDP for the peer, whose busybox has none:
//
//   udp echo PORT                       answer every datagram with itself, in the background:
//                                       who started it may count on it
//   udp ask ADDRESS PORT COUNT BYTES    send COUNT datagrams of BYTES each, one after the other;
//                                       status 0 when every one came back as it was

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

enum { MOST = 65507, PATIENCE_S = 20 };

static char sent[MOST], got[MOST];

static int fail(const char *what)
{
    perror(what);
    return 1;
}

static struct sockaddr_in place(const char *address, const char *port)
{
    struct sockaddr_in made = { .sin_family = AF_INET, .sin_port = htons(atoi(port)) };

    if (!inet_aton(address, &made.sin_addr)) {
        fprintf(stderr, "%s is no address\n", address);
        exit(1);
    }
    return made;
}

static int echo(int udp, const char *port)
{
    struct sockaddr_in at = place("0.0.0.0", port);

    if (bind(udp, (struct sockaddr *)&at, sizeof at))
        return fail("bind");
    pid_t child = fork();
    if (child)
        return child < 0 ? fail("fork") : 0;
    for (;;) {
        struct sockaddr_in from;
        socklen_t length = sizeof from;
        ssize_t size = recvfrom(udp, got, sizeof got, 0, (struct sockaddr *)&from, &length);

        if (size < 0)
            return fail("recvfrom");
        if (sendto(udp, got, size, 0, (struct sockaddr *)&from, length) != size)
            return fail("sendto");
    }
}

static int ask(int udp, struct sockaddr_in of, int count, int bytes)
{
    struct timeval patience = { .tv_sec = PATIENCE_S };

    if (bytes < 0 || bytes > MOST) {
        fprintf(stderr, "%d bytes are no datagram\n", bytes);
        return 1;
    }
    setsockopt(udp, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (connect(udp, (struct sockaddr *)&of, sizeof of))
        return fail("connect");
    for (int n = 0; n < count; n++) {
        for (int at = 0; at < bytes; at++)
            sent[at] = n * 31 + at * 7;
        if (send(udp, sent, bytes, 0) != bytes)
            return fail("send");
        ssize_t size = recv(udp, got, sizeof got, 0);
        if (size < 0)
            return fail("recv");
        if (size != bytes || memcmp(sent, got, bytes)) {
            printf("datagram %d came back with %zd bytes, another one\n", n, size);
            return 1;
        }
    }
    printf("%d of %d bytes came back\n", count, bytes);
    return 0;
}

int main(int count, char **words)
{
    int udp = socket(AF_INET, SOCK_DGRAM, 0);

    if (udp < 0)
        return fail("socket");
    if (count == 3 && !strcmp(words[1], "echo"))
        return echo(udp, words[2]);
    if (count == 6 && !strcmp(words[1], "ask"))
        return ask(udp, place(words[2], words[3]), atoi(words[4]), atoi(words[5]));
    fprintf(stderr, "udp echo PORT | udp ask ADDRESS PORT COUNT BYTES\n");
    return 2;
}
