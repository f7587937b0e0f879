# SPDX-License-Identifier: GPL-2.0-or-later
#
# guestos: a kernel ported to Xen's paravirtual interface, small enough to read in one sitting.
#
# It runs in ring 1 on page tables of its own. Whatever an operating system does with a privileged
# instruction it does here by a hypercall, and every one of those stands in port.s: reading that
# one file tells what porting a kernel to Xen means. The other files are an ordinary kernel.
#
# Reading order, which is also the order in memory:
#
#   syscalls.inc the contract with programs
#   cpu.s       virtual processors, and what each has of its own
#   port.s      every privileged operation, with the native one that it replaces
#   lock.s      locks, and in which order they are taken
#   console.s   text out and keys in, over a ring shared with Dom0
#   entry.s     the first instruction, and what happens in which order
#   traps.s     exceptions: the frame, the table, the way back, the report of a crash
#   events.s    event channels: interrupts of a paravirtual machine
#   eventcount.s  waiting for an event without missing it
#   time.s      a tick, the clock, sleeping
#   memory.s    the kernel's own page tables
#   pages.s     a page allocator that counts users
#   space.s     address spaces of programs
#   copy.s      copying and emptying them
#   fault.s     page faults: demand, copy on write; copying from and to programs
#   kstack.s    kernel stacks
#   process.s   processes: fork, exit, waitpid
#   signal.s    kill
#   schedule.s  taking turns, sleeping
#   smp.s       more processors
#   fpu.s       the FPU, for those who use it
#   grants.s    pages that other domains may use
#   ring.s      requests and responses in a page shared with a backend
#   xenstore.s  asking XenStore
#   xenbus.s    devices: finding them, and the states in which both ends meet
#   network.s   the network: interfaces, buffers, and who owns them
#   ethernet.s  frames
#   arp.s       which station has an address
#   ip.s        packets, and which way they go
#   icmp.s      ping, and errors
#   udp.s       datagrams
#   netfront.s  the driver of an interface: two rings
#   vif_pages.s  its pages: rings and buffers
#   vif.s       how it meets its backend
#   blkfront.s  disks: sectors between memory and a backend
#   vbd.s       how such a disk comes and goes
#   syscall.s   system calls
#   files.s     descriptors
#   tty.s       the console as a file
#   pipe.s      pipes
#   ramdisk.s   the archive that the machine came with
#   cache.s     blocks of disks
#   disk.s      disks as files
#   fat.s       the file system of the first disk
#   fat_names.s  its directories
#   exec.s      starting another program
#   socket.s    where datagrams wait for programs
#   socket_transfer.s  sending and receiving
#   socket_message.s  between programs and messages
#   socketcall.s  the system calls of sockets
#   balloon.s   giving memory back
#   report.s    what it finds at boot, and what it tells programs
#
# Convention of calls, everywhere unless a routine says otherwise: arguments in eax, edx and ecx in
# this order, the result in eax. A routine may change eax, ecx, edx and the flags, and keeps all
# else; the direction flag is always clear. "In" and "out" in the comments name what a routine
# takes and gives beyond that.
#
# One rule for the whole kernel: no instruction that reads privileged state without faulting (sgdt,
# sidt, sldt, smsw, str, lar, lsl, verr, verw, pushf or popf for IF, CS for its own ring). In ring 1
# they would quietly give the hypervisor's answer. tests/unit/guestos checks it.

.include "xen_abi.inc"
.include "syscalls.inc"

.equ VIRT_BASE, 0xC0000000          # where page 0 is mapped: va = VIRT_BASE + (pfn << PAGE_SHIFT)

.xen_note GUEST_OS, "guestos"
.xen_note GUEST_VERSION, "0.1"
.xen_note XEN_VERSION, "xen-3.0"
.xen_note LOADER, "generic"
.xen_note PAE_MODE, "yes"
.xen_note VIRT_BASE, VIRT_BASE
.xen_note ENTRY, _start
.xen_note HYPERCALL_PAGE, hypercall_page
.xen_note FEATURES, "!writable_page_tables|pae_pgdir_above_4gb"

.include "cpu.s"
.include "port.s"
.include "lock.s"
.include "console.s"
.include "entry.s"
.include "traps.s"
.include "events.s"
.include "eventcount.s"
.include "time.s"
.include "memory.s"
.include "pages.s"
.include "space.s"
.include "copy.s"
.include "fault.s"
.include "kstack.s"
.include "process.s"
.include "signal.s"
.include "schedule.s"
.include "smp.s"
.include "fpu.s"
.include "grants.s"
.include "ring.s"
.include "xenstore.s"
.include "xenbus.s"
.include "network.s"
.include "ethernet.s"
.include "arp.s"
.include "ip.s"
.include "icmp.s"
.include "udp.s"
.include "netfront.s"
.include "vif_pages.s"
.include "vif.s"
.include "blkfront.s"
.include "vbd.s"
.include "syscall.s"
.include "files.s"
.include "tty.s"
.include "pipe.s"
.include "ramdisk.s"
.include "cache.s"
.include "disk.s"
.include "fat.s"
.include "fat_names.s"
.include "exec.s"
.include "socket.s"
.include "socket_transfer.s"
.include "socket_message.s"
.include "socketcall.s"
.include "balloon.s"
.include "report.s"
