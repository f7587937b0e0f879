# SPDX-License-Identifier: GPL-2.0-or-later
#
# XenBus: how a device's two ends find each other in XenStore, and part.
#
# A toolstack makes a directory for each end. Each end shows in its own a state, and watches the
# other's (public/io/xenbus.h):
#
#   1 Initialising   2 InitWait   3 Initialised   4 Connected   5 Closing   6 Closed
#
#   ours   its
#    1      2    the driver's connect: a ring, grants, a port, told in XenStore; then DRIVER_READY
#    3, 4   4    the driver's live: the backend has joined; then 4
#    4      5    it asks us to leave: when the driver's idle says so, its stop; then 5 and 6
#    3      5 6  it cannot join: the driver's stop; then 6
#    3, 4   0-2  it has gone, or another one has come in its place (0: no node): we start again, see
#    4, 1   4    below; if ours is 4, only where it was written anew: another one has joined
#    6      2    it was closed and comes anew: 1
#    any         the device's directory is gone: the driver's stop and remove
#
# Starting again. A backend that crashed may have been replaced by one that waits (2), or that has
# joined a ring of before (4). So both ends go through 6, which every backend follows; then 1, which
# leads it to 2. Requests in work are kept by the driver, and put into the new ring.
#
# All of this is done by one process of the kernel, so nobody waits for a backend but those who use
# it. It sleeps until a watch has something to tell (xenstore.s); a watch does not say what has
# changed, so xenbus_look acts on how things are. It also hears what the toolstack wishes of the
# whole machine (control/shutdown).
#
# A driver's routines run in this process. In: eax = device. They may ask XenStore.
#
#   connect   Out: eax = 0, or -errno: then nothing is left of it
#   live      Out: as above
#   idle      Out: eax = 1 where no request is in work; if 0, it calls xenbus_poke when none is
#   stop      leave the ring, and give back the port. In: edx = 1 where what is in work is to fail,
#             0 where it waits for the next connect. May come twice. The backend may use what it
#             was granted until the next connect, or remove.
#   remove    the device is gone, after stop

# Watches: these, and from WATCH_DEVICE on one for each device's backend.
.equ WATCH_DEVICES, 0
.equ WATCH_SHUTDOWN, 1
.equ WATCH_DEVICE, 2

.equ XENBUS_PAUSE_NS, 100 * NS_PER_MS
.equ DEVICES_MAX, STORE_WATCHES - WATCH_DEVICE
.equ DEVICE_PATH_SIZE, 32           # "device/vbd/4294967295"
.equ DEVICE_BACKEND_SIZE, 96

.equ DEVICE_DRIVER, 0               # 0: a free place
.equ DEVICE_NUMBER, 4               # as in its path
.equ DEVICE_STATE, 8                # XenbusState of our end
.equ DEVICE_DOMID, 12               # where the backend is
.equ DEVICE_DATA, 16                # the driver's own word
.equ DEVICE_IS_LIVE, 20             # bytes: the backend has joined
.equ DEVICE_IS_RESTARTING, 21       # our 6 is on the way to 1
.equ DEVICE_IS_BROKEN, 22           # by xenbus_break
.equ DEVICE_IS_SEEN, 23             # by the search that is going on
.equ DEVICE_PATH, 24
.equ DEVICE_BACKEND, DEVICE_PATH + DEVICE_PATH_SIZE
.equ SIZEOF_DEVICE, DEVICE_BACKEND + DEVICE_BACKEND_SIZE

.equ DRIVER_PATH, 0                 # of the directory of its devices, a text
.equ DRIVER_READY, 4                # the state in which its backend joins
.equ DRIVER_CONNECT, 8
.equ DRIVER_LIVE, 12
.equ DRIVER_IDLE, 16
.equ DRIVER_STOP, 20
.equ DRIVER_REMOVE, 24


.section .text

# Start the process. kernel_lock is held.
xenbus_open:
    mov eax, offset xenbus_run
    mov edx, offset xenbus_process
    jmp process_make_kernel

xenbus_run:
    call port_unmask_events
    call kernel_enter
    call xenbus_pause
    call store_open
    mov eax, offset xenbus_devices_path
    xor edx, edx
    mov ecx, WATCH_DEVICES
    call store_watch
    mov eax, offset xenbus_control
    mov edx, offset xenbus_shutdown
    mov ecx, WATCH_SHUTDOWN
    call store_watch
.Lxenbus_next:
    call store_wait
    mov ebx, eax
    mov esi, edx
    btr ebx, WATCH_SHUTDOWN
    jnc .Lxenbus_no_shutdown
    call xenbus_hear_shutdown
.Lxenbus_no_shutdown:
    btr ebx, WATCH_DEVICES
    jnc .Lxenbus_device
    call xenbus_search
    mov dword ptr [xenbus_has_searched], 1
    mov eax, offset xenbus_has_searched
    call process_wake
.Lxenbus_device:
    mov eax, ebx
    or eax, esi
    bsf eax, eax
    jz .Lxenbus_next
    btr esi, eax
    btr ebx, eax
    sbb edx, edx                    # not 0: its backend has written its state
    sub eax, WATCH_DEVICE
    imul eax, eax, SIZEOF_DEVICE
    add eax, offset xenbus_devices
    cmp dword ptr [eax + DEVICE_DRIVER], 0
    je .Lxenbus_device              # of one that is gone
    call xenbus_look
    jmp .Lxenbus_device

# Let the shell begin first, as long as nobody wants a device.
xenbus_pause:
    push esi
    call process_current
    mov esi, eax
    call time_now
    add eax, XENBUS_PAUSE_NS
    adc edx, 0
    mov [esi + PROCESS_DEADLINE], eax
    mov [esi + PROCESS_DEADLINE + 4], edx
    mov eax, offset xenbus_pause
    xor edx, edx
    call process_sleep
    pop esi
    ret

# Wait, in any process, until the devices of the boot are known. kernel_lock is held.
xenbus_wait_for_search:
    cmp dword ptr [xenbus_has_searched], 0
    jne .Lwait_for_search_done
    mov eax, offset xenbus_pause
    call process_wake
    mov eax, offset xenbus_has_searched
    xor edx, edx
    call process_sleep
    test eax, eax
    jz xenbus_wait_for_search
.Lwait_for_search_done:
    ret

# -- for drivers -----------------------------------------------------------------------------

# Read a node of the backend, a number. In: eax = device, edx = name. Out: eax; CF set for none.
xenbus_backend_number:
    add eax, DEVICE_BACKEND
    jmp store_read_number

# Write a node of ours, a number. In: eax = device, edx = name, ecx = number. Out: eax = 0 or
# -errno.
xenbus_write_number:
    add eax, DEVICE_PATH
    jmp store_write_number

# Write a node of ours. In: eax = device, edx = name, ecx = value, a text. Out: as above.
xenbus_write:
    add eax, DEVICE_PATH
    jmp store_write

# Have a device looked at. In: eax = device. Every process and handler may call it.
xenbus_poke:
    call xenbus_watch_of
    mov eax, ecx
    jmp store_poke

# A backend has done what cannot be. Say so, and give it up; what is in work fails. In: eax =
# device, edx = what it has done, a text. Any process may call it.
xenbus_break:
    mov byte ptr [eax + DEVICE_IS_BROKEN], 1
    push eax
    push edx
    call xenbus_print_name
    pop eax
    call print
    PRINT ": given up\n"
    pop eax
    jmp xenbus_poke

# Print "device/vbd/51712: ". In: eax = device.
xenbus_print_name:
    add eax, DEVICE_PATH
    call print
    PRINT ": "
    ret

# Which watch is a backend's? In: eax = device. Out: ecx. Keeps eax.
xenbus_watch_of:
    push eax
    sub eax, offset xenbus_devices
    xor edx, edx
    mov ecx, SIZEOF_DEVICE
    div ecx
    lea ecx, [eax + WATCH_DEVICE]
    pop eax
    ret

# -- the states ------------------------------------------------------------------------------

# Act on how things are. In: eax = device, edx = not 0 where its backend has written its state.
xenbus_look:
    push ebx
    push esi
    push edi
    mov ebx, eax
    mov edi, edx
    lea eax, [ebx + DEVICE_BACKEND]
    mov edx, offset xenbus_state
    call store_read_number
    jnc .Llook_state
    xor eax, eax                    # XenbusStateUnknown
.Llook_state:
    mov esi, eax
    # XenStore keeps the order: what the watch has told by now was written before it was read.
    mov eax, ebx
    call xenbus_watch_of
    mov eax, ecx
    call store_forget_change
    sbb edx, edx
    or edi, edx
    cmp byte ptr [ebx + DEVICE_IS_BROKEN], 0
    jne .Llook_broken
    mov ecx, [ebx + DEVICE_STATE]
    cmp ecx, XenbusStateInitialising
    je .Llook_initialising
    cmp ecx, XenbusStateClosed
    je .Llook_closed
    # ours is 3 or 4
    cmp esi, XenbusStateConnected
    je .Llook_live
    cmp esi, XenbusStateClosing
    je .Llook_closing
    cmp esi, XenbusStateClosed
    je .Llook_closing
    cmp esi, XenbusStateInitWait
    ja .Llook_out                   # 7 and 8: nothing that concerns us
    jne .Llook_restart
    cmp byte ptr [ebx + DEVICE_IS_LIVE], 0
    je .Llook_out                   # 2: it has not seen our state yet
.Llook_restart:
    mov byte ptr [ebx + DEVICE_IS_RESTARTING], 1
    xor edx, edx
    call xenbus_stop
    mov edx, XenbusStateClosed
    call xenbus_show
    cmp esi, XenbusStateClosed
    je .Llook_again                 # it is there: no watch will tell of it
    jmp .Llook_out

.Llook_initialising:
    cmp esi, XenbusStateInitWait
    je .Llook_connect
    cmp esi, XenbusStateConnected
    je .Llook_restart
    jmp .Llook_out
.Llook_connect:
    mov eax, ebx
    mov ecx, [ebx + DEVICE_DRIVER]
    call dword ptr [ecx + DRIVER_CONNECT]
    test eax, eax
    js .Llook_failed
    mov ecx, [ebx + DEVICE_DRIVER]
    mov edx, [ecx + DRIVER_READY]
    call xenbus_show
    jmp .Llook_out

.Llook_live:
    cmp byte ptr [ebx + DEVICE_IS_LIVE], 0
    je .Llook_joined
    test edi, edi
    jz .Llook_out                   # the driver has called
    jmp .Llook_restart              # another one has joined the same ring
.Llook_joined:
    mov eax, ebx
    mov ecx, [ebx + DEVICE_DRIVER]
    call dword ptr [ecx + DRIVER_LIVE]
    test eax, eax
    js .Llook_failed
    mov byte ptr [ebx + DEVICE_IS_LIVE], 1
    mov edx, XenbusStateConnected
    call xenbus_show
    jmp .Llook_out

.Llook_closing:
    cmp byte ptr [ebx + DEVICE_IS_LIVE], 0
    je .Llook_close                 # it could not join
    cmp esi, XenbusStateClosed
    je .Llook_restart               # it has gone without asking, and may come back
    mov eax, ebx
    mov ecx, [ebx + DEVICE_DRIVER]
    call dword ptr [ecx + DRIVER_IDLE]
    test eax, eax
    jz .Llook_out
    mov edx, XenbusStateClosing
    call xenbus_show
    jmp .Llook_close

.Llook_closed:
    cmp byte ptr [ebx + DEVICE_IS_RESTARTING], 0
    je .Llook_closed_for_good
    cmp esi, XenbusStateClosed
    jne .Llook_out
    jmp .Llook_again
.Llook_closed_for_good:
    cmp esi, XenbusStateInitWait
    jne .Llook_out
.Llook_again:
    mov byte ptr [ebx + DEVICE_IS_RESTARTING], 0
    mov edx, XenbusStateInitialising
    call xenbus_show
    jmp .Llook_out

.Llook_broken:
    mov byte ptr [ebx + DEVICE_IS_BROKEN], 0
    cmp dword ptr [ebx + DEVICE_STATE], XenbusStateClosed
    je .Llook_out
    jmp .Llook_close
.Llook_failed:
    neg eax
    push eax
    mov eax, ebx
    call xenbus_print_name
    PRINT "cannot be used: error "
    pop eax
    call print_decimal
    PRINT "\n"
.Llook_close:
    mov edx, 1
    call xenbus_stop
    mov edx, XenbusStateClosed
    call xenbus_show
.Llook_out:
    pop edi
    pop esi
    pop ebx
    ret

# Have the driver stop. In: ebx = device, edx = 1 where what is in work is to fail.
xenbus_stop:
    mov byte ptr [ebx + DEVICE_IS_LIVE], 0
    mov eax, ebx
    mov ecx, [ebx + DEVICE_DRIVER]
    jmp dword ptr [ecx + DRIVER_STOP]

# Show a state. In: ebx = device, edx = state. Our directory may be gone: then nobody sees it.
xenbus_show:
    mov [ebx + DEVICE_STATE], edx
    mov ecx, edx
    mov eax, ebx
    mov edx, offset xenbus_state
    jmp xenbus_write_number

# -- finding devices -------------------------------------------------------------------------

# See which devices there are: new ones, and those that are gone.
xenbus_search:
    push ebx
    mov ebx, offset xenbus_drivers
.Lsearch_next:
    cmp dword ptr [ebx + DRIVER_PATH], 0
    je .Lsearch_done
    call xenbus_search_kind
    add ebx, SIZEOF_DRIVER
    jmp .Lsearch_next
.Lsearch_done:
    pop ebx
    ret

# See which devices a driver has. In: ebx = driver.
xenbus_search_kind:
    push esi
    push edi
    mov eax, [ebx + DRIVER_PATH]
    xor edx, edx
    call store_list
    xor edi, edi                    # how many numbers are kept
    test eax, eax
    js .Lkind_listed                # no such directory: no devices
    mov esi, offset store_answer
    add eax, esi
    push eax
.Lkind_name:
    cmp esi, [esp]
    jae .Lkind_names_done
    cmp edi, DEVICES_MAX
    jae .Lkind_names_done
    mov eax, esi
    call store_number
    jc .Lkind_skip
    mov [xenbus_numbers + edi * 4], eax
    inc edi
.Lkind_skip:
    lodsb
    test al, al
    jnz .Lkind_skip
    jmp .Lkind_name
.Lkind_names_done:
    pop eax
.Lkind_listed:
    mov esi, offset xenbus_devices
.Lkind_forget:
    mov byte ptr [esi + DEVICE_IS_SEEN], 0
    add esi, SIZEOF_DEVICE
    cmp esi, offset xenbus_devices_end
    jb .Lkind_forget
.Lkind_number:
    dec edi
    js .Lkind_gone
    mov eax, [xenbus_numbers + edi * 4]
    call xenbus_see
    jmp .Lkind_number
.Lkind_gone:
    mov esi, offset xenbus_devices
.Lkind_gone_next:
    cmp [esi + DEVICE_DRIVER], ebx
    jne .Lkind_gone_skip
    cmp byte ptr [esi + DEVICE_IS_SEEN], 0
    jne .Lkind_gone_skip
    mov eax, esi
    call xenbus_remove
.Lkind_gone_skip:
    add esi, SIZEOF_DEVICE
    cmp esi, offset xenbus_devices_end
    jb .Lkind_gone_next
    pop edi
    pop esi
    ret

# A device is there: find out whether it is new, or its backend is another one. In: eax = its
# number, ebx = driver.
xenbus_see:
    push esi
    mov ecx, offset xenbus_devices
    xor esi, esi                    # a free place
.Lsee_look:
    cmp dword ptr [ecx + DEVICE_DRIVER], 0
    je .Lsee_free
    cmp [ecx + DEVICE_DRIVER], ebx
    jne .Lsee_next
    cmp [ecx + DEVICE_NUMBER], eax
    je .Lsee_known
.Lsee_next:
    add ecx, SIZEOF_DEVICE
    cmp ecx, offset xenbus_devices_end
    jb .Lsee_look
    test esi, esi
    jz .Lsee_out                    # more than we have places for: left alone
    mov [esi + DEVICE_NUMBER], eax
    mov dword ptr [esi + DEVICE_DATA], 0
    mov dword ptr [esi + DEVICE_IS_LIVE], 0         # and the bytes behind it
    mov [esi + DEVICE_DRIVER], ebx
    call xenbus_name
    call xenbus_find_backend
    test eax, eax
    jns .Lsee_begin
    mov dword ptr [esi + DEVICE_DRIVER], 0          # its toolstack has not finished
    jmp .Lsee_out
.Lsee_free:
    mov esi, ecx
    jmp .Lsee_next
.Lsee_known:
    mov esi, ecx
    mov byte ptr [esi + DEVICE_IS_SEEN], 1
    lea eax, [esi + DEVICE_PATH]
    mov edx, offset xenbus_backend
    call store_read
    test eax, eax
    js .Lsee_out
    mov eax, offset store_answer
    lea edx, [esi + DEVICE_BACKEND]
    call texts_are_equal
    test eax, eax
    jnz .Lsee_out
    call xenbus_unwatch
    push ebx
    mov ebx, esi
    xor edx, edx
    call xenbus_stop
    pop ebx
    call xenbus_find_backend
    test eax, eax
    js .Lsee_out
.Lsee_begin:
    mov byte ptr [esi + DEVICE_IS_SEEN], 1
    push ebx
    mov ebx, esi
    mov edx, XenbusStateInitialising
    call xenbus_show
    pop ebx
    mov eax, esi
    call xenbus_watch_of
    add eax, DEVICE_BACKEND
    mov edx, offset xenbus_state
    call store_watch
.Lsee_out:
    pop esi
    ret

# Write a device's path: its driver's, a slash, its number. In: esi = device, ebx = driver.
xenbus_name:
    push edi
    lea edi, [esi + DEVICE_PATH]
    mov edx, [ebx + DRIVER_PATH]
.Lname_kind:
    mov al, [edx]
    inc edx
    stosb
    test al, al
    jnz .Lname_kind
    mov byte ptr [edi - 1], '/'
    mov eax, [esi + DEVICE_NUMBER]
    mov ecx, 10
    push 0                          # ends the digits
.Lname_digit:
    xor edx, edx
    div ecx
    add edx, '0'
    push edx
    test eax, eax
    jnz .Lname_digit
.Lname_write:
    pop eax
    stosb
    test al, al
    jnz .Lname_write
    pop edi
    ret

# Read where the backend of a device is. In: esi = device. Out: eax = 0, or negative.
xenbus_find_backend:
    push edi
    lea eax, [esi + DEVICE_PATH]
    mov edx, offset xenbus_backend_id
    call store_read_number
    jc .Lbackend_none
    mov [esi + DEVICE_DOMID], eax
    lea eax, [esi + DEVICE_PATH]
    mov edx, offset xenbus_backend
    call store_read
    test eax, eax
    js .Lbackend_out
    cmp eax, DEVICE_BACKEND_SIZE
    jae .Lbackend_none
    push esi
    lea edi, [esi + DEVICE_BACKEND]
    mov esi, offset store_answer
    mov ecx, DEVICE_BACKEND_SIZE
    rep movsb
    pop esi
    xor eax, eax
    jmp .Lbackend_out
.Lbackend_none:
    mov eax, -ENOENT
.Lbackend_out:
    pop edi
    ret

# In: esi = device.
xenbus_unwatch:
    mov eax, esi
    call xenbus_watch_of
    add eax, DEVICE_BACKEND
    mov edx, offset xenbus_state
    jmp store_unwatch

# A device is gone. In: eax = device.
xenbus_remove:
    push ebx
    push esi
    mov ebx, eax
    mov esi, eax
    call xenbus_unwatch
    mov edx, 1
    call xenbus_stop
    mov eax, ebx
    mov ecx, [ebx + DEVICE_DRIVER]
    call dword ptr [ecx + DRIVER_REMOVE]
    mov dword ptr [ebx + DEVICE_DRIVER], 0
    pop esi
    pop ebx
    ret

# -- the toolstack's wishes ------------------------------------------------------------------

# Do what control/shutdown says; an empty word in its place is the answer.
xenbus_hear_shutdown:
    push ebx
    mov eax, offset xenbus_control
    mov edx, offset xenbus_shutdown
    call store_read
    mov ebx, offset xenbus_wishes
.Lshutdown_next:
    mov edx, [ebx]
    test edx, edx
    jz .Lshutdown_out               # empty, or nothing that we know
    mov eax, offset store_answer
    call texts_are_equal
    test eax, eax
    jnz .Lshutdown_found
    add ebx, 8
    jmp .Lshutdown_next
.Lshutdown_found:
    mov eax, offset xenbus_control
    mov edx, offset xenbus_shutdown
    mov ecx, offset xenbus_empty
    call store_write
    PRINT "guestos: the toolstack asks for "
    mov eax, [ebx]
    call print
    PRINT "\n"
    mov eax, [ebx + 4]
    jmp port_shutdown
.Lshutdown_out:
    pop ebx
    ret

.section .rodata
.p2align 2
.equ SIZEOF_DRIVER, DRIVER_REMOVE + 4
xenbus_drivers:
    .long vif_path, XenbusStateConnected, vif_connect, vif_live, vif_idle, vif_stop, vif_remove
    .long blk_path, XenbusStateInitialised, blk_connect, blk_live, blk_idle, blk_stop, blk_remove
    .long 0

xenbus_wishes:
    .long .Lwish_poweroff, SHUTDOWN_poweroff, .Lwish_halt, SHUTDOWN_poweroff
    .long .Lwish_reboot, SHUTDOWN_reboot
    .long 0
.Lwish_poweroff: .asciz "poweroff"
.Lwish_halt: .asciz "halt"
.Lwish_reboot: .asciz "reboot"
xenbus_devices_path:
    .asciz "device"
xenbus_control:
    .asciz "control"
xenbus_shutdown:
    .asciz "shutdown"
xenbus_state:
    .asciz "state"
xenbus_backend:
    .asciz "backend"
xenbus_backend_id:
    .asciz "backend-id"
xenbus_empty:
    .byte 0
xenbus_process:
    .asciz "xenbus"
    .space PROCESS_NAME_BYTES - 7

.section .bss
.p2align 2
xenbus_devices:
    .space DEVICES_MAX * SIZEOF_DEVICE
xenbus_devices_end:
xenbus_has_searched:
    .space 4                        # 1 when the devices of the boot are known
xenbus_numbers:
    .space DEVICES_MAX * 4          # of xenbus_search_kind
