# SPDX-License-Identifier: GPL-2.0-or-later
#
# Virtual processors: what each of them has of its own, and how code finds out which one it runs on.
#
# No register is free to say it, and a segment would have to be loaded at every trap. But a kernel
# stack is used by one processor at a time, and its place is a power of two: the last word of the
# block that esp lies in is the address of the processor's structure. schedule.s writes it when a
# process gets a processor.
#
#   block, KSTACK_SIZE bytes:   guard, not mapped | stack, grows down | FPU state | word
#                               KSTACK_GUARD        KSTACK_TOP up to here
#
# The FPU's state lies there because each process needs room for it, whether it uses the FPU or not
# (fpu.s), and the block is what each process has.
#
# An overflow of the stack meets the guard: the domain ends, no neighbour's variables change.

.equ CPUS_MAX, 8
.equ KSTACK_SIZE, 4 * PAGE_SIZE
.equ KSTACK_GUARD, 2 * PAGE_SIZE
.equ FPU_STATE_SIZE, 512
.equ KSTACK_CPU, KSTACK_SIZE - 4
.equ KSTACK_FPU, KSTACK_SIZE - 16 - FPU_STATE_SIZE     # fxsave wants a multiple of 16
.equ KSTACK_TOP, KSTACK_FPU

.equ CPU_CURRENT, 0                 # the process that runs on it
.equ CPU_ID, 4
.equ CPU_INFO, 8                    # address of its vcpu_info in shared_info
.equ CPU_IDLE, 12                   # the process that runs when no other can
.equ CPU_STATE, 16                  # one of
.equ CPU_ABSENT, 0
.equ CPU_OFFLINE, 1
.equ CPU_ONLINE, 2
.equ CPU_LEAVING, 3
.equ CPU_TIMER_PORT, 20             # event ports
.equ CPU_IPI_PORT, 24
.equ CPU_FPU_OWNER, 28              # the process whose state is in the FPU, or 0: see fpu.s
.equ CPU_BATCH, 32                  # port.s: list of changes to page tables,
.equ CPU_BATCH_COUNT, 36            #         how many are in it,
.equ CPU_BATCH_FLUSH, 40            #         and which translations to forget after them
.equ CPU_RESCHEDULE, 44             # byte: the turn of the current process is over
.equ CPU_SLEEPS, 45                 # byte: it waits for an event, and an IPI would wake it
.equ CPU_LOADED, 48                 # schedule.s: the process whose address space and stack are
                                    # loaded, or 0 for the kernel's
.equ CPU_PORTS, 52                  # a bit for each event port that is this processor's
.equ SIZEOF_CPU, CPU_PORTS + EVTCHN_2L_NR_CHANNELS / 8

# Which processor is this? \reg becomes the address of its structure.
.macro CPU reg
    mov \reg, esp
    or \reg, KSTACK_SIZE - 1
    mov \reg, [\reg - (KSTACK_SIZE - 1 - KSTACK_CPU)]
.endm

.section .bss
.p2align PAGE_SHIFT
cpu_first_batch:
    .space PAGE_SIZE
.p2align 4
cpu_table:
    .space CPUS_MAX * SIZEOF_CPU
cpu_table_end:
cpus_present:
    .space 4                        # as many as the domain was given, CPUS_MAX at most
cpus_online:
    .space 4
