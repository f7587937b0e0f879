/* SPDX-License-Identifier: GPL-2.0-or-later */
/* hostile: try to harm the kernel from ring 3: bad addresses to every system call, calls at random,
 * and instructions at random. Children do it, and may end as they like; this program then looks
 * whether the kernel still does what it should. The same seed makes the same attempts. */

#include "network.h"

const char usage_text[] = "usage: hostile [CHILDREN [SEED]]";

enum { CHAOS_BYTES = 32768, CALLS = 300, PIECE = 64 };

/* Random bytes that can be executed: memory of ours that can be written cannot. */
__asm__(".section .text\n"
        "chaos:\n"
        ".set state, 12345\n"
        ".rept 32768\n"
        ".set state, (state * 1103515245 + 12345) & 0x7fffffff\n"
        ".byte (state >> 16) & 0xff\n"
        ".endr\n"
        ".previous\n");
extern const char chaos[];

static int ends[2];             /* of a pipe with bytes in it */
static char page[2 * PAGE_SIZE];

/* Addresses that nothing may be read from, or written to. */
static const unsigned bad_addresses[] = {
    0,          4,          0x1000,     0x3FFFFFFF, 0x40000000, 0x7FFFFFF0, 0x80000000, 0xBFFFF000,
    0xBFFFFFFF, 0xC0000000, 0xC0001000, 0xE0000000, 0xF5800000, 0xFC000000, 0xFFFFF000, 0xFFFFFFFC,
    0xFFFFFFFF,
};
enum { BAD_ADDRESSES = sizeof bad_addresses / sizeof bad_addresses[0] };

static unsigned accepted;

static void must_refuse(const char *what, unsigned address, int result)
{
    if (result >= 0) {
        print("hostile: %s took %x\n", what, address);
        accepted++;
    }
}

static int call_socket(int operation, int socket, unsigned a, unsigned b, unsigned c, unsigned d,
                       unsigned e)
{
    unsigned words[] = {socket, a, b, c, d, e};
    return system_call(SYS_socketcall, operation, (int)words, 0);
}

/* The calls of sockets: arguments, names, data, records, and what the records say. */
static void try_socket(int socket, unsigned bad)
{
    const unsigned data = (unsigned)page, flags = MSG_DONTWAIT;
    struct sockaddr_in name = {AF_INET, swap16(9), ~0u, {0, 0}};
    unsigned length = sizeof name;
    struct iovec part = {(void *)bad, PIECE};
    struct mmsghdr record = {&name, sizeof name, &part, 1, 0, 0, 0, 0};
    must_refuse("socketcall", bad, system_call(SYS_socketcall, SOCKETCALL_bind, bad, 0));
    must_refuse("bind", bad, call_socket(SOCKETCALL_bind, socket, bad, 16, 0, 0, 0));
    must_refuse("connect", bad, call_socket(SOCKETCALL_connect, socket, bad, 16, 0, 0, 0));
    must_refuse("getsockname", bad,
                call_socket(SOCKETCALL_getsockname, socket, bad, (unsigned)&length, 0, 0, 0));
    must_refuse("getsockname's length", bad,
                call_socket(SOCKETCALL_getsockname, socket, (unsigned)&name, bad, 0, 0, 0));
    must_refuse("setsockopt", bad,
                call_socket(SOCKETCALL_setsockopt, socket, SOL_SOCKET, SO_RCVTIMEO, bad, 8, 0));
    must_refuse("sendto", bad,
                call_socket(SOCKETCALL_sendto, socket, bad, PIECE, flags, (unsigned)&name, 16));
    if (bad)
        must_refuse("sendto's name", bad,
                    call_socket(SOCKETCALL_sendto, socket, data, PIECE, flags, bad, 16));
    must_refuse("sendmmsg", bad, call_socket(SOCKETCALL_sendmmsg, socket, bad, 2, flags, 0, 0));
    must_refuse("sendmmsg's data", bad,
                call_socket(SOCKETCALL_sendmmsg, socket, (unsigned)&record, 1, flags, 0, 0));
    must_refuse("recvmmsg", bad, call_socket(SOCKETCALL_recvmmsg, socket, bad, 2, flags, 0, 0));
    record.parts = (void *)bad;
    must_refuse("recvmmsg's parts", bad,
                call_socket(SOCKETCALL_recvmmsg, socket, (unsigned)&record, 1, flags, 0, 0));
    must_refuse("recvfrom", bad,
                call_socket(SOCKETCALL_recvfrom, socket, bad, PIECE, flags, bad, bad));
    must_refuse("network", bad, network(NETWORK_GET, 0, (void *)bad));
    must_refuse("network's record", bad, network(NETWORK_SET, 0, (void *)bad));
}

/* Every call that takes an address gets every bad one. */
static void try_addresses(void)
{
    char *words[] = {"true", 0};
    int udp = socket(IPPROTO_UDP);
    for (unsigned i = 0; i < BAD_ADDRESSES; i++) {
        unsigned bad = bad_addresses[i];
        write(ends[1], page, PIECE);
        must_refuse("read", bad, read(ends[0], (void *)bad, PIECE));
        must_refuse("write", bad, write(ends[1], (void *)bad, PIECE));
        must_refuse("write to the console", bad, write(STDOUT, (void *)bad, PIECE));
        must_refuse("open", bad, open((void *)bad, O_RDONLY));
        must_refuse("execve", bad, execve((void *)bad, words));
        if (bad)
            must_refuse("execve's words", bad, execve("bin/true", (void *)bad));
        must_refuse("pipe", bad, pipe((void *)bad));
        must_refuse("nanosleep", bad, system_call(SYS_nanosleep, bad, 0, 0));
        must_refuse("clock_gettime", bad, system_call(SYS_clock_gettime, 1, bad, 0));
        must_refuse("processes", bad, system_call(SYS_processes, bad, 4096, 0));
        must_refuse("memory", bad, system_call(SYS_memory, bad, 4096, 0));
        must_refuse("directory", bad, system_call(SYS_directory, bad, bad, 4096));
        try_socket(udp, bad);
        if (bad) {
            int id = must_fork();
            if (id == 0)
                leave(0);
            must_refuse("waitpid", bad, waitpid(id, (void *)bad, 0));
            waitpid(id, 0, 0);
        }
    }
    /* Memory of our own that must not be written: the code. */
    write(ends[1], page, PIECE);
    must_refuse("read into the code", (unsigned)chaos, read(ends[0], (void *)chaos, PIECE));
    must_refuse("pipe into the code", (unsigned)chaos, pipe((void *)chaos));
}

static unsigned random_argument(void)
{
    return random_below(3) ? random_number() : bad_addresses[random_below(BAD_ADDRESSES)];
}

/* Arguments of a call of sockets: descriptors, addresses of ours, anything. */
static unsigned *random_words(void)
{
    static unsigned words[6];
    for (unsigned i = 0; i < 6; i++)
        words[i] = random_below(2) ? random_argument()
                 : random_below(2) ? (unsigned)page + random_below(PAGE_SIZE) : random_below(20);
    return words;
}

/* Any number, any arguments; but nothing that a program may well do to the others. */
static void try_calls(void)
{
    for (unsigned i = 0; i < CALLS; i++) {
        unsigned number = random_below(4) ? random_below(300) : 500 + random_below(30);
        if (number == SYS_exit || number == SYS_fork || number == SYS_kill)
            continue;
        if (number == SYS_reboot || number == SYS_vcpu || number == SYS_balloon)
            continue;
        unsigned first = random_argument(), second = random_argument();
        if (first < 3)
            first += 3;         /* not the console, which the others need */
        if (random_below(8) == 0) {
            number = SYS_socketcall;
            first = random_below(24);
            second = (unsigned)random_words();
        }
        system_call(number, first, second, random_below(2) ? random_number() : random_below(64));
    }
}

/* Go somewhere into the chaos, with anything in the registers. */
static void try_instructions(void)
{
    unsigned regs[7];
    for (unsigned i = 0; i < 7; i++)
        regs[i] = random_below(2) ? random_number() : (unsigned)page + random_below(PAGE_SIZE);
    unsigned to = (unsigned)chaos + random_below(CHAOS_BYTES);
    __asm__ volatile("pushl %1\n"
                     "movl 4(%0), %%ebx\n"
                     "movl 8(%0), %%ecx\n"
                     "movl 12(%0), %%edx\n"
                     "movl 16(%0), %%esi\n"
                     "movl 20(%0), %%edi\n"
                     "movl 24(%0), %%ebp\n"
                     "movl (%0), %%eax\n"
                     "ret\n"
                     :
                     : "a"(regs), "d"(to)
                     : "memory");
}

/* A child that does one of these; one that does not end is ended. Tell whether a signal did it. */
static int run_child(unsigned number)
{
    int word = 0;
    int id = must_fork();
    if (id == 0) {
        seed(random_number() + number);
        if (number % 4 == 0)
            try_calls();
        else
            try_instructions();
        leave(0);
    }
    for (unsigned i = 0; i < 10; i++) {
        if (waitpid(id, &word, WNOHANG) == id)
            return (word & 0x7F) != 0;
        sleep_ns(1000000);
    }
    kill(id, SIGKILL);
    return wait_for(id) > 128;
}

int main(int count, char **words)
{
    if (count > 3)
        usage();
    unsigned children = count >= 2 ? number_of(words[1], 0) : 40;
    seed(count == 3 ? number_of(words[2], 0) : 1);
    if (pipe(ends) < 0) {
        print_error("hostile: no pipe\n");
        return STATUS_FAILED;
    }
    try_addresses();
    unsigned ended = 0;
    for (unsigned i = 0; i < children; i++) {
        random_number();
        ended += run_child(i);
    }
    int id = must_fork();
    if (id == 0)
        leave(42);
    if (wait_for(id) != 42) {
        print_error("hostile: the kernel has suffered\n");
        return STATUS_FAILED;
    }
    print("%u children, %u ended by a signal; %u bad addresses taken\n", children, ended, accepted);
    return accepted ? STATUS_FAILED : 0;
}
