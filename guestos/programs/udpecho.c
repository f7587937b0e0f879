/* SPDX-License-Identifier: GPL-2.0-or-later */
/* udpecho: send each datagram that comes back to where it came from. */

#include "network.h"

const char usage_text[] = "usage: udpecho [PORT]";

int main(int count, char **words)
{
    static char data[DATAGRAM_MAX];
    if (count > 2)
        usage();
    int socket = must_socket(IPPROTO_UDP);
    int error = bind(socket, 0, count == 2 ? port_of(words[1]) : 7);
    if (error < 0)
        fail("udpecho", error);
    for (;;) {
        unsigned address, port;
        int bytes = recvfrom(socket, data, sizeof data, &address, &port);
        if (bytes < 0)
            fail("udpecho", bytes);
        sendto(socket, data, bytes, address, port);     /* what has no way back is lost */
    }
}
