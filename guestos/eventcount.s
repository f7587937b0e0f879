# SPDX-License-Identifier: GPL-2.0-or-later
#
# Event counts: how processes wait for an event without missing it.
#
# A count goes up with each event. Whoever waits reads it first, then looks for what it waits for,
# and then sleeps only as long as the count is still the one that was read:
#
#   again:  seen = count;  is it so? -> done;  eventcount_wait(seen);  again
#
# An event that comes between the look and the sleep has changed the count, and nobody sleeps. It
# does not matter how many wait, for what, or who has served the event already.

.equ EVENTCOUNT_COUNT, 0
.equ EVENTCOUNT_LOCK, 4             # event-safe: taken by handlers of events, too
.equ SIZEOF_EVENTCOUNT, 8

.section .text

# The handler of an event whose argument is an event count. In: edx.
eventcount_event:
    mov eax, edx

# Count an event, and wake who waits. In: eax = event count. Event handlers may call it.
eventcount_advance:
    push ebx
    mov ebx, eax
    lea eax, [ebx + EVENTCOUNT_LOCK]
    call lock_events
    mov edx, eax
    inc dword ptr [ebx + EVENTCOUNT_COUNT]
    lea eax, [ebx + EVENTCOUNT_LOCK]
    call unlock_events
    mov eax, ebx
    pop ebx
    jmp process_wake

# Sleep until a count is not what it was. No signal ends that: for what must be seen through to its
# end. In: eax = event count, edx = what it was. kernel_lock is given back meanwhile. Changes the
# registers that every call may change.
eventcount_wait:
    push ebx
    push esi
    mov ebx, eax
    mov esi, edx
.Leventcount_look:
    lea eax, [ebx + EVENTCOUNT_LOCK]
    call lock_events
    mov edx, eax
    cmp [ebx + EVENTCOUNT_COUNT], esi
    jne .Leventcount_changed
    mov eax, ebx
    lea edx, [ebx + EVENTCOUNT_LOCK]
    call process_sleep_deaf         # gives the lock back when asleep
    jmp .Leventcount_look
.Leventcount_changed:
    lea eax, [ebx + EVENTCOUNT_LOCK]
    call unlock_events
    pop esi
    pop ebx
    ret
