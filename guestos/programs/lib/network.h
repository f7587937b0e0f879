/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Sockets, and addresses as texts. Records hold numbers in the order of the network; programs hold
 * them in their own. */
#ifndef NETWORK_H
#define NETWORK_H

#include "program.h"

enum { DATAGRAM_MAX = 1472 };           /* bytes of UDP in one packet */

static inline unsigned short swap16(unsigned value)
{
    return value << 8 | (value >> 8 & 0xFF);
}

static inline unsigned swap32(unsigned value)
{
    return __builtin_bswap32(value);
}

/* The calls by their names, as Unix has them. */
int socket(int protocol);
int bind(int socket, unsigned address, unsigned port);
int connect(int socket, unsigned address, unsigned port);
int sendto(int socket, const void *from, int bytes, unsigned address, unsigned port);
int recvfrom(int socket, void *to, int bytes, unsigned *address, unsigned *port);
int setsockopt(int socket, int option, const void *value, int bytes);
int sendmmsg(int socket, struct mmsghdr *messages, int count);
int recvmmsg(int socket, struct mmsghdr *messages, int count);
int network(int command, int number, struct network_info *info);

/* How long a read of a socket waits, 0 for ever. */
void set_patience(int socket, unsigned ms);

/* Get a socket, or end the program with a message. */
int must_socket(int protocol);

/* End the program: what could not be done, and why. */
void fail(const char *what, int error) __attribute__((noreturn));

/* Read "10.0.0.1"; 0 where the word is no address. */
int parse_address(const char *word, unsigned *address);

/* Read an address, or a port; what is none ends the program (usage). */
unsigned address_of(const char *word);
unsigned port_of(const char *word);

/* Print an address. */
void print_address(unsigned address);

/* Read an interface's name, "eth0": its number, or -1. */
int interface_of(const char *word);

#endif
