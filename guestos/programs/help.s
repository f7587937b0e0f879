# SPDX-License-Identifier: GPL-2.0-or-later
#
# help: tell what can be typed.

.include "lib/program.inc"

USAGE "usage: help\n"

.section .text
main:
    cmp eax, 1
    jne usage
    mov eax, offset help_text
    call put_text
    xor eax, eax
    ret

.section .rodata
help_text:
    .ascii "  balloon N         give N pages to the hypervisor; -N takes them back\n"
    .ascii "  bench [NAME]      how long system calls, forks and faults take\n"
    .ascii "  cat [FILE]...     print files\n"
    .ascii "  cowtest           pages shared until one writes\n"
    .ascii "  crash             shut down as a crash\n"
    .ascii "  dd [if=FILE] [of=FILE] [bs=N] [count=N] [skip=N] [seek=N]   copy blocks\n"
    .ascii "  dhcp [eth0]       get an interface's addresses from a server\n"
    .ascii "  echo [WORD]...    print words\n"
    .ascii "  false             fail\n"
    .ascii "  faulttest [NAME]  every exception, and what becomes of who makes it\n"
    .ascii "  forktest [N]      fork N times, 1000 without a number\n"
    .ascii "  fputest           registers of the FPU, in several processes at once\n"
    .ascii "  halt              power off\n"
    .ascii "  hello             hello from ring 3\n"
    .ascii "  help              this list\n"
    .ascii "  hog [PAGES]       use memory until there is no more\n"
    .ascii "  hostile           try to harm the kernel\n"
    .ascii "  ifconfig [eth0 [ADDRESS/BITS [GATEWAY]]]  show or set interfaces\n"
    .ascii "  kill [-N] ID...   end processes; -ID ends a group, such as a job\n"
    .ascii "  ls [DIRECTORY]    the files of the RAM disk; of the first disk: ls disk\n"
    .ascii "  mem               how memory is used\n"
    .ascii "  ping ADDRESS      ask a station whether it is there; -c COUNT -i MS -s BYTES\n"
    .ascii "  pktgen ADDRESS PORT  send numbered datagrams; -n COUNT -s BYTES\n"
    .ascii "  primes [N]        count prime numbers\n"
    .ascii "  ps                the processes\n"
    .ascii "  reboot            shut down for a reboot\n"
    .ascii "  sh [FILE]         a shell; it knows exit, history, jobs, kill and wait itself\n"
    .ascii "  sleep SECONDS     wait\n"
    .ascii "  spin [SECONDS]    keep a processor busy\n"
    .ascii "  stress SECONDS    run all of this at random\n"
    .ascii "  sum [FILE]...     checksums and lengths, as cksum has them\n"
    .ascii "  sync              have disks keep what was written\n"
    .ascii "  true              succeed\n"
    .ascii "  udpecho [PORT]    send back what comes\n"
    .ascii "  udpsend ADDRESS PORT TEXT  send a datagram; -n COUNT -s BYTES for many\n"
    .ascii "  udpsink [PORT]    count what pktgen sends\n"
    .ascii "  uptime            time since boot\n"
    .ascii "  vcpu [up N]       list virtual processors, bring one up or down\n"
    .ascii "  wc [FILE]         count lines, words and bytes\n"
    .ascii "Disks are dev/xvda and so on; a FAT file system on the first one is disk.\n"
    .ascii "A | B pipes, A & runs behind, A; B one after the other, $? is the last status.\n"
    .asciz "The cursor keys edit, and bring lines of before; Ctrl-C ends what runs.\n"
