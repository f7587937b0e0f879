/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Sockets, and addresses as texts. See network.h. */

#include "network.h"

static int socket_call(int operation, int a, int b, int c, int d, int e, int f)
{
    int words[6] = {a, b, c, d, e, f};
    return system_call(SYS_socketcall, operation, (int)words, 0);
}

static struct sockaddr_in name_of(unsigned address, unsigned port)
{
    struct sockaddr_in name = {AF_INET, swap16(port), swap32(address), {0, 0}};
    return name;
}

int socket(int protocol)
{
    return socket_call(SOCKETCALL_socket, AF_INET, SOCK_DGRAM, protocol, 0, 0, 0);
}

int bind(int socket, unsigned address, unsigned port)
{
    struct sockaddr_in name = name_of(address, port);
    return socket_call(SOCKETCALL_bind, socket, (int)&name, sizeof name, 0, 0, 0);
}

int connect(int socket, unsigned address, unsigned port)
{
    struct sockaddr_in name = name_of(address, port);
    return socket_call(SOCKETCALL_connect, socket, (int)&name, sizeof name, 0, 0, 0);
}

int sendto(int socket, const void *from, int bytes, unsigned address, unsigned port)
{
    struct sockaddr_in name = name_of(address, port);
    return socket_call(SOCKETCALL_sendto, socket, (int)from, bytes, 0, (int)&name, sizeof name);
}

int recvfrom(int socket, void *to, int bytes, unsigned *address, unsigned *port)
{
    struct sockaddr_in name = name_of(0, 0);
    int length = sizeof name;
    int count = socket_call(SOCKETCALL_recvfrom, socket, (int)to, bytes, 0, (int)&name,
                            (int)&length);
    if (address)
        *address = swap32(name.address);
    if (port)
        *port = swap16(name.port);
    return count;
}

int setsockopt(int socket, int option, const void *value, int bytes)
{
    return socket_call(SOCKETCALL_setsockopt, socket, SOL_SOCKET, option, (int)value, bytes, 0);
}

int sendmmsg(int socket, struct mmsghdr *messages, int count)
{
    return socket_call(SOCKETCALL_sendmmsg, socket, (int)messages, count, 0, 0, 0);
}

int recvmmsg(int socket, struct mmsghdr *messages, int count)
{
    return socket_call(SOCKETCALL_recvmmsg, socket, (int)messages, count, MSG_WAITFORONE, 0, 0);
}

int network(int command, int number, struct network_info *info)
{
    return system_call(SYS_network, command, number, (int)info);
}

void set_patience(int socket, unsigned ms)
{
    unsigned time[2] = {ms / 1000, ms % 1000 * 1000};
    setsockopt(socket, SO_RCVTIMEO, time, sizeof time);
}

int must_socket(int protocol)
{
    int made = socket(protocol);
    if (made < 0)
        fail("socket", made);
    return made;
}

void fail(const char *what, int error)
{
    static const struct {
        int error;
        const char *text;
    } texts[] = {
        {EINTR, "interrupted"},
        {EAGAIN, "no answer"},
        {ENODEV, "no such interface"},
        {EINVAL, "not possible"},
        {EADDRINUSE, "in use"},
        {ENETUNREACH, "no way to that address"},
        {ECONNREFUSED, "nobody listens there"},
        {EHOSTUNREACH, "nobody has that address"},
    };
    for (unsigned i = 0; i < sizeof texts / sizeof *texts; i++)
        if (texts[i].error == -error) {
            print_error("%s: %s\n", what, texts[i].text);
            exit(STATUS_FAILED);
        }
    print_error("%s: error %d\n", what, -error);
    exit(STATUS_FAILED);
}

int parse_address(const char *word, unsigned *address)
{
    unsigned value = 0;
    for (int part = 0; part < 4; part++) {
        unsigned number = 0;
        const char *start = word;
        for (; *word >= '0' && *word <= '9' && word - start < 3; word++)
            number = number * 10 + (*word - '0');
        if (word == start || number > 255 || *word++ != (part < 3 ? '.' : 0))
            return 0;
        value = value << 8 | number;
    }
    *address = value;
    return 1;
}

unsigned address_of(const char *word)
{
    unsigned address;
    if (!parse_address(word, &address))
        usage();
    return address;
}

unsigned port_of(const char *word)
{
    unsigned port = number_of(word, 1);
    if (port > 65535)
        usage();
    return port;
}

void print_address(unsigned address)
{
    print("%u.%u.%u.%u", address >> 24, address >> 16 & 255, address >> 8 & 255, address & 255);
}

int interface_of(const char *word)
{
    if (word[0] != 'e' || word[1] != 't' || word[2] != 'h' || word[3] < '0' || word[3] > '9')
        return -1;
    return word[4] ? -1 : word[3] - '0';
}
