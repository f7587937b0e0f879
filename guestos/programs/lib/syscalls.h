/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The contract between the kernel and its programs, for C; see syscalls.inc. */
#ifndef SYSCALLS_H
#define SYSCALLS_H

enum {
    SYS_exit = 1,
    SYS_fork = 2,
    SYS_read = 3,
    SYS_write = 4,
    SYS_open = 5,
    SYS_close = 6,
    SYS_waitpid = 7,
    SYS_execve = 11,
    SYS_getpid = 20,
    SYS_kill = 37,
    SYS_pipe = 42,
    SYS_brk = 45,
    SYS_setpgid = 57,
    SYS_dup2 = 63,
    SYS_getppid = 64,
    SYS_reboot = 88,
    SYS_socketcall = 102,
    SYS_sched_yield = 158,
    SYS_nanosleep = 162,
    SYS_clock_gettime = 265,
    SYS_processes = 512,
    SYS_memory = 513,
    SYS_vcpu = 514,
    SYS_balloon = 515,
    SYS_directory = 516,
    SYS_network = 517,
};

enum { STDIN, STDOUT, STDERR };
enum { O_RDONLY, O_WRONLY, O_RDWR };
enum { WNOHANG = 1 };
enum {
    SIGINT = 2,
    SIGILL = 4,
    SIGTRAP = 5,
    SIGBUS = 7,
    SIGFPE = 8,
    SIGKILL = 9,
    SIGSEGV = 11,
    SIGTERM = 15,
};
enum { CLOCK_MONOTONIC = 1 };
enum {
    ENOENT = 2,
    EINTR = 4,
    EBADF = 9,
    EAGAIN = 11,
    ENOMEM = 12,
    EFAULT = 14,
    ENODEV = 19,
    EINVAL = 22,
    ENOSYS = 38,
    ENOTSOCK = 88,
    EMSGSIZE = 90,
    EADDRINUSE = 98,
    ENETUNREACH = 101,
    ECONNREFUSED = 111,
    EHOSTUNREACH = 113,
};
enum { PAGE_SIZE = 4096 };

struct timespec {
    unsigned seconds;
    unsigned nanoseconds;
};

struct memory_info {
    unsigned total;
    unsigned free;
    unsigned tables;
    unsigned ballooned;
    unsigned shared;
    unsigned processes;
};

enum {
    SOCKETCALL_socket = 1,
    SOCKETCALL_bind = 2,
    SOCKETCALL_connect = 3,
    SOCKETCALL_getsockname = 6,
    SOCKETCALL_sendto = 11,
    SOCKETCALL_recvfrom = 12,
    SOCKETCALL_setsockopt = 14,
    SOCKETCALL_recvmmsg = 19,
    SOCKETCALL_sendmmsg = 20,
};
enum { AF_INET = 2, SOCK_DGRAM = 2, IPPROTO_ICMP = 1, IPPROTO_UDP = 17 };
enum { SOL_SOCKET = 1, SO_BROADCAST = 6, SO_RCVTIMEO = 20, SO_BINDTODEVICE = 25 };
enum { MSG_DONTWAIT = 0x40, MSG_WAITFORONE = 0x10000 };
enum { NETWORK_GET, NETWORK_SET };
enum { NETWORK_ABSENT, NETWORK_DOWN, NETWORK_UP };

struct sockaddr_in {
    unsigned short family;
    unsigned short port;
    unsigned address;
    unsigned unused[2];
};

struct iovec {
    void *base;
    unsigned length;
};

struct mmsghdr {
    struct sockaddr_in *name;
    unsigned name_length;
    struct iovec *parts;
    unsigned part_count;
    void *control;
    unsigned control_length;
    unsigned flags;
    unsigned length;
};

struct network_info {
    unsigned state;
    unsigned char mac[8];
    unsigned address;
    unsigned mask;
    unsigned gateway;
    unsigned rx_packets;
    unsigned rx_dropped;
    unsigned rx_bad;
    unsigned tx_packets;
    unsigned tx_dropped;
    unsigned rx_bytes[2];
    unsigned tx_bytes[2];
    unsigned events;
    unsigned notifies;
};

#endif
