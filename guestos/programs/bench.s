# SPDX-License-Identifier: GPL-2.0-or-later
#
# bench: measure the kernel, by its own clock.
#
#   getpid           the shortest system call
#   fork             fork alone, of a process of 64 pages; its child ends at once
#   fork_exit_wait   the same, with the child's end and waitpid
#   fork_exec_wait   a child that becomes bin/true
#   demand_fault     the first touch of a page of the heap
#   cow_fault        the first store of a child to a page that it shares with its parent
#   pipe_round_trip  a byte to another process and one back
#   switch           two processes give way to each other, time per switch
#
# For each it writes how many there will be, does them, and writes how long one took:
#
#   getpid 20000 times
#     310 ns each
#
# tools/bench guestos reads that. Each is measured in a process of its own, so that all begin with
# the same memory.

.include "lib/program.inc"

USAGE "usage: bench [NAME [COUNT]]\n"

.equ PROCESS_PAGES, 64              # of a process that forks
.equ PAGE_SIZE, 4096
.equ NS_PER_S, 1000000000
.equ INFOS, 16                      # processes that are looked at to find our own

# What a measurement consists of. Its routines may change all registers but esi and esp.
.equ BENCH_NAME, 0
.equ BENCH_COUNT, 4                 # how often, when nobody says
.equ BENCH_PREPARE, 8               # in: ebp = how often
.equ BENCH_RUN, 12                  # in: ebp = how often; this is timed
.equ BENCH_FINISH, 16
.equ SIZEOF_BENCH, 20

.section .text
main:
    cmp eax, 3
    ja usage
    mov ebp, [edx + 4]              # ebp = the one that is wanted, or 0
    mov edi, 0                      # edi = how often, or 0
    jne .Lmain_begin
    mov eax, [edx + 8]
    call want_number
    test eax, eax
    jz usage
    mov edi, eax
.Lmain_begin:
    mov esi, offset benches
.Lmain_next:
    test ebp, ebp
    jz .Lmain_take
    mov eax, [esi + BENCH_NAME]
    mov edx, ebp
    call text_equals
    test eax, eax
    jz .Lmain_skip
.Lmain_take:
    inc dword ptr [found]
    call fork_or_fail
    test eax, eax
    jz measure
    call wait_for
    test eax, eax
    jnz .Lmain_out
.Lmain_skip:
    add esi, SIZEOF_BENCH
    cmp esi, offset benches_end
    jb .Lmain_next
    cmp dword ptr [found], 0
    je usage
    xor eax, eax
.Lmain_out:
    ret

# Measure, report and end. In: esi = what, edi = how often or 0.
measure:
    test edi, edi
    jnz .Lmeasure_counted
    mov edi, [esi + BENCH_COUNT]
.Lmeasure_counted:
    mov [count], edi
    mov ebp, edi
    call dword ptr [esi + BENCH_PREPARE]
    mov eax, [esi + BENCH_NAME]
    call put_text
    PRINT " "
    mov eax, [count]
    call put_decimal
    PRINT " times\n"
    call read_clock
    mov [begin], eax
    mov [begin + 4], edx
    mov ebp, [count]
    call dword ptr [esi + BENCH_RUN]
    call read_clock
    sub eax, [begin]
    sbb edx, [begin + 4]
    sub eax, [left_out]
    sbb edx, [left_out + 4]
    mov ecx, [count]
    cmp edx, ecx
    jae .Lmeasure_slow
    div ecx
    jmp .Lmeasure_report
.Lmeasure_slow:
    mov eax, -1                     # more than 4 s each
.Lmeasure_report:
    PRINT "  "
    call put_decimal
    PRINT " ns each\n"
    call dword ptr [esi + BENCH_FINISH]
    xor eax, eax
    jmp exit

# Read the clock. Out: edx:eax = ns.
read_clock:
    push ebx
    mov ebx, CLOCK_MONOTONIC
    mov ecx, offset clock
    SYSTEM_CALL clock_gettime
    mov eax, NS_PER_S
    mul dword ptr [clock]
    add eax, [clock + 4]
    adc edx, 0
    pop ebx
    ret

# -- processes and memory --------------------------------------------------------------------

# Fork, or end the program. Out: eax = 0 in the child, its id in the parent.
fork_or_fail:
    call flush
    SYSTEM_CALL fork
    mov edx, offset text_fork
    test eax, eax
    js fail
    ret

# Wait for a child. In: eax = its id. Out: eax = 0 if it ended well, else STATUS_FAILED.
wait_for:
    push ebx
    mov ebx, eax
    mov ecx, offset status
    xor edx, edx
    SYSTEM_CALL waitpid
    mov edx, offset text_wait
    test eax, eax
    js fail
    xor eax, eax
    cmp [status], eax
    je .Lwait_done
    mov eax, STATUS_FAILED
.Lwait_done:
    pop ebx
    ret

# Make the heap longer. In: eax = pages. Out: eax = the first of them.
more_pages:
    push ebx
    push esi
    mov esi, eax
    xor ebx, ebx
    SYSTEM_CALL brk
    lea ebx, [eax + PAGE_SIZE - 1]
    and ebx, -PAGE_SIZE
    push ebx
    shl esi, 12
    add ebx, esi
    SYSTEM_CALL brk
    cmp eax, ebx
    jne .Lmore_failed
    pop eax
    pop esi
    pop ebx
    ret
.Lmore_failed:
    mov eax, -ENOMEM
    mov edx, offset text_heap
    jmp fail

# Touch each of so many pages. In: eax = the first, ebp = how many.
touch_pages:
.Ltouch_next:
    mov byte ptr [eax], 1
    add eax, PAGE_SIZE
    dec ebp
    jnz .Ltouch_next
    ret

# Have PROCESS_PAGES pages, whatever the program and its stack take of them.
prepare_pages:
    SYSTEM_CALL getpid
    mov edi, eax
    mov ebx, offset infos
    mov ecx, INFOS * SIZEOF_PROCESS_INFO
    SYSTEM_CALL processes
    add eax, ebx                    # where the records end
.Lpages_look:
    cmp ebx, eax
    jae .Lpages_unknown
    cmp [ebx + PROCESS_INFO_ID], edi
    je .Lpages_found
    add ebx, SIZEOF_PROCESS_INFO
    jmp .Lpages_look
.Lpages_found:
    mov ebp, PROCESS_PAGES
    sub ebp, [ebx + PROCESS_INFO_PAGES]
    jbe .Lpages_unknown
    mov eax, ebp
    call more_pages
    jmp touch_pages
.Lpages_unknown:
    mov eax, -EINVAL
    mov edx, offset text_pages
    jmp fail

# -- what is measured ------------------------------------------------------------------------

nothing:
    ret

run_getpid:
    SYSTEM_CALL getpid
    dec ebp
    jnz run_getpid
    ret

# From the fork's return to the next one is left out.
run_fork:
    SYSTEM_CALL fork
    test eax, eax
    jz child_exit
    js fork_failed
    mov edi, eax
    call read_clock
    sub [left_out], eax
    sbb [left_out + 4], edx
    mov eax, edi
    call wait_for
    call read_clock
    add [left_out], eax
    adc [left_out + 4], edx
    dec ebp
    jnz run_fork
    ret

run_fork_exit_wait:
    SYSTEM_CALL fork
    test eax, eax
    jz child_exit
    js fork_failed
    call wait_for
    dec ebp
    jnz run_fork_exit_wait
    ret

child_exit:
    xor ebx, ebx
    SYSTEM_CALL exit
fork_failed:
    mov edx, offset text_fork
    jmp fail

run_fork_exec_wait:
    SYSTEM_CALL fork
    test eax, eax
    jz .Lexec_child
    js fork_failed
    call wait_for
    test eax, eax
    jnz exit
    dec ebp
    jnz run_fork_exec_wait
    ret
.Lexec_child:
    mov ebx, offset text_true
    mov ecx, offset true_words
    xor edx, edx
    SYSTEM_CALL execve
    mov edx, offset text_true
    jmp fail

prepare_demand:
    mov eax, ebp
    call more_pages
    mov [pages], eax
    ret

run_touch:
    mov eax, [pages]
    jmp touch_pages

# The measuring goes on in a child, which shares its pages.
prepare_cow:
    call prepare_demand
    call touch_pages
    call fork_or_fail
    test eax, eax
    jz nothing
    call wait_for
    jmp exit

# The partner echoes until nobody can write to it any more.
prepare_pipe:
    mov ebx, offset pipe_there
    SYSTEM_CALL pipe
    mov edx, offset text_pipe
    test eax, eax
    js fail
    mov ebx, offset pipe_back
    SYSTEM_CALL pipe
    test eax, eax
    js fail
    call fork_or_fail
    mov [partner], eax
    test eax, eax
    jnz nothing
    mov ebx, [pipe_there + 4]
    SYSTEM_CALL close
.Lecho_next:
    mov ebx, [pipe_there]
    call read_byte
    jne child_exit
    mov ebx, [pipe_back + 4]
    call write_byte
    je .Lecho_next
    jmp child_exit

run_pipe:
    mov ebx, [pipe_there + 4]
    call write_byte
    jne .Lpipe_failed
    mov ebx, [pipe_back]
    call read_byte
    jne .Lpipe_failed
    dec ebp
    jnz run_pipe
    ret
.Lpipe_failed:
    mov edx, offset text_pipe
    jmp fail

# In: ebx = the file. Out: ZF set where a byte was read or written; eax = the result.
read_byte:
    mov ecx, offset byte
    mov edx, 1
    SYSTEM_CALL read
    cmp eax, 1
    ret
write_byte:
    mov ecx, offset byte
    mov edx, 1
    SYSTEM_CALL write
    cmp eax, 1
    ret

finish_pipe:
    mov ebx, [pipe_there + 4]
    SYSTEM_CALL close
    mov eax, [partner]
    jmp wait_for

prepare_switch:
    call fork_or_fail
    mov [partner], eax
    test eax, eax
    jnz nothing
.Lswitch_partner:
    SYSTEM_CALL sched_yield
    jmp .Lswitch_partner

# There and back are two.
run_switch:
    SYSTEM_CALL sched_yield
    sub ebp, 2
    ja run_switch
    ret

finish_switch:
    mov ebx, [partner]
    mov ecx, SIGKILL
    SYSTEM_CALL kill
    mov eax, [partner]
    jmp wait_for                    # killed is not "ended well", and nobody asks

.section .rodata
.p2align 2
.macro BENCH name, count, prepare, run, finish=nothing
    .long text_\name, \count, \prepare, \run, \finish
.endm
benches:
    BENCH getpid, 20000, nothing, run_getpid
    BENCH fork, 50, prepare_pages, run_fork
    BENCH fork_exit_wait, 50, prepare_pages, run_fork_exit_wait
    BENCH fork_exec_wait, 50, prepare_pages, run_fork_exec_wait
    BENCH demand_fault, 256, prepare_demand, run_touch
    BENCH cow_fault, 256, prepare_cow, run_touch
    BENCH pipe_round_trip, 1000, prepare_pipe, run_pipe, finish_pipe
    BENCH switch, 4000, prepare_switch, run_switch, finish_switch
benches_end:
true_words:
    .long text_true, 0
text_getpid: .asciz "getpid"
text_fork: .asciz "fork"
text_fork_exit_wait: .asciz "fork_exit_wait"
text_fork_exec_wait: .asciz "fork_exec_wait"
text_demand_fault: .asciz "demand_fault"
text_cow_fault: .asciz "cow_fault"
text_pipe_round_trip: .asciz "pipe_round_trip"
text_switch: .asciz "switch"
text_true: .asciz "bin/true"
text_wait: .asciz "waitpid"
text_heap: .asciz "heap"
text_pages: .asciz "own pages"
text_pipe: .asciz "pipe"

.section .bss
.p2align 2
count:
    .space 4
found:
    .space 4
status:
    .space 4
partner:
    .space 4
pages:
    .space 4
begin:
    .space 8
left_out:
    .space 8
clock:
    .space 8
pipe_there:
    .space 8
pipe_back:
    .space 8
byte:
    .space 4
infos:
    .space INFOS * SIZEOF_PROCESS_INFO
