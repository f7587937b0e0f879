# SPDX-License-Identifier: GPL-2.0-or-later
#
# What the kernel finds: start_info, the hypervisor, its memory. Printed at boot,
# and what it tells programs about itself.

.section .text

# Print the fields of start_info, one line each.
report_start_info:
    push ebx
    push esi
    mov ebx, [start_info]
    PRINT "start_info:\n  magic "
    lea eax, [ebx + START_INFO_MAGIC]
    call print
    PRINT "\n"
    mov esi, offset start_info_fields
.Lstart_info_next:
    mov eax, [esi]
    test eax, eax
    jz .Lstart_info_done
    call print
    mov eax, [esi + 4]
    mov eax, [ebx + eax]
    call dword ptr [esi + 8]
    PRINT "\n"
    add esi, 12
    jmp .Lstart_info_next
.Lstart_info_done:
    PRINT "  cmd_line \""
    lea eax, [ebx + START_INFO_CMD_LINE]
    call print
    PRINT "\"\n"
    pop esi
    pop ebx
    ret

# Print what xen_version tells.
report_hypervisor:
    push ebx
    push esi
    PRINT "hypervisor: Xen "
    mov eax, XENVER_version
    xor edx, edx
    call port_xen_version
    mov ebx, eax
    shr eax, 16
    call print_decimal
    PRINT "."
    movzx eax, bx
    call print_decimal
    mov eax, XENVER_extraversion
    call report_text
    PRINT "\n  capabilities "
    mov eax, XENVER_capabilities
    call report_text
    PRINT "\n  its memory begins at "
    mov eax, XENVER_platform_parameters
    mov edx, offset report_answer
    call port_xen_version
    mov eax, [report_answer + XEN_PLATFORM_PARAMETERS_VIRT_START]
    call print_hex
    PRINT "\n  features"
    mov dword ptr [report_answer + XEN_FEATURE_INFO_SUBMAP_IDX], 0
    mov eax, XENVER_get_features
    mov edx, offset report_answer
    call port_xen_version
    mov ebx, [report_answer + XEN_FEATURE_INFO_SUBMAP]
    mov esi, offset feature_names
.Lfeature_next:
    mov eax, [esi]
    test eax, eax
    jz .Lfeature_done
    mov ecx, [esi + 4]
    bt ebx, ecx
    jnc .Lfeature_absent
    call print
.Lfeature_absent:
    add esi, 8
    jmp .Lfeature_next
.Lfeature_done:
    PRINT "\n  page faults "
    cmp byte ptr [traps_has_fault_address], 0
    je .Lfault_address_absent
    PRINT "push their address (xenlite)\n"
    jmp .Lreport_done
.Lfault_address_absent:
    PRINT "leave their address in shared_info\n"
.Lreport_done:
    pop esi
    pop ebx
    ret

# Print a text that xen_version tells. In: eax = XENVER_ command. A refusal prints nothing.
report_text:
    mov byte ptr [report_answer], 0
    mov edx, offset report_answer
    call port_xen_version
    mov eax, offset report_answer
    jmp print

# Print how memory is used.
report_memory:
    PRINT "memory: "
    mov eax, [start_info]
    mov eax, [eax + START_INFO_NR_PAGES]
    push eax
    shr eax, 20 - PAGE_SHIFT
    call print_decimal
    PRINT " MB, "
    pop eax
    call print_decimal
    PRINT " pages; "
    mov eax, [memory_pages]
    call print_decimal
    PRINT " mapped by "
    mov eax, [kernel_tables_end]
    sub eax, [kernel_tables]
    shr eax, PAGE_SHIFT
    call print_decimal
    PRINT " page tables of our own, "
    call page_count_free
    call print_decimal
    PRINT " free; changes to tables "
    movzx eax, byte ptr [port_batching]
    mov eax, [batching_names + eax * 4]
    call print
    PRINT "\n"
    ret

# Print how many processors there are.
report_cpus:
    PRINT "processors: "
    mov eax, [cpus_online]
    call print_decimal
    PRINT "\n"
    ret

# -- system calls ----------------------------------------------------------------------------

# memory(address, bytes) -> bytes of MEMORY_INFO
sys_memory:
    push esi
    sub esp, SIZEOF_MEMORY_INFO
    mov eax, [memory_pages]
    mov [esp + MEMORY_INFO_TOTAL], eax
    call page_count_free
    mov [esp + MEMORY_INFO_FREE], eax
    imul ecx, [spaces_spare_count], SPACE_TABLES
    mov eax, [tables_pages]
    sub eax, ecx                    # those of spare address spaces count as free
    mov [esp + MEMORY_INFO_TABLES], eax
    mov eax, [balloon_pages]
    mov [esp + MEMORY_INFO_BALLOONED], eax
    mov eax, [pages_shared]
    mov [esp + MEMORY_INFO_SHARED], eax
    mov eax, [processes_count]
    mov [esp + MEMORY_INFO_PROCESSES], eax
    mov esi, SIZEOF_MEMORY_INFO
    cmp [ebx + FRAME_ECX], esi
    jae .Lmemory_room
    mov esi, [ebx + FRAME_ECX]
.Lmemory_room:
    mov eax, [ebx + FRAME_EBX]
    mov edx, esp
    mov ecx, esi
    call user_copy_out
    test eax, eax
    jnz .Lmemory_out
    mov eax, esi
.Lmemory_out:
    add esp, SIZEOF_MEMORY_INFO
    pop esi
    ret

# processes(address, bytes) -> bytes of PROCESS_INFO records
sys_processes:
    push esi
    push edi
    push ebp
    sub esp, SIZEOF_PROCESS_INFO
    mov esi, offset process_first_slot
    xor edi, edi                    # bytes written
.Lprocesses_next:
    cmp dword ptr [esi + PROCESS_STATE], PROCESS_NEW
    jbe .Lprocesses_skip            # FREE or NEW
    cmp dword ptr [esi + PROCESS_ID], 0
    je .Lprocesses_skip             # the kernel's own
    lea eax, [edi + SIZEOF_PROCESS_INFO]
    cmp eax, [ebx + FRAME_ECX]
    ja .Lprocesses_done
    mov eax, esp
    call process_describe
    mov eax, [ebx + FRAME_EBX]
    add eax, edi
    mov edx, esp
    mov ecx, SIZEOF_PROCESS_INFO
    call user_copy_out
    test eax, eax
    jnz .Lprocesses_out
    add edi, SIZEOF_PROCESS_INFO
.Lprocesses_skip:
    add esi, SIZEOF_PROCESS
    cmp esi, [process_slots_end]
    jb .Lprocesses_next
.Lprocesses_done:
    mov eax, edi
.Lprocesses_out:
    add esp, SIZEOF_PROCESS_INFO
    pop ebp
    pop edi
    pop esi
    ret

# Write a record of a process. In: eax = the record, esi = process.
process_describe:
    push edi
    mov edi, eax
    mov eax, [esi + PROCESS_ID]
    mov [edi + PROCESS_INFO_ID], eax
    mov eax, [esi + PROCESS_PARENT]
    mov eax, [eax + PROCESS_ID]
    mov [edi + PROCESS_INFO_PARENT], eax
    mov eax, [esi + PROCESS_STATE]
    mov al, [process_letters + eax]
    mov [edi + PROCESS_INFO_STATE], al
    mov eax, [esi + PROCESS_CPU]
    mov eax, [eax + CPU_ID]
    mov [edi + PROCESS_INFO_VCPU], al
    mov word ptr [edi + PROCESS_INFO_VCPU + 1], 0
    xor eax, eax
    mov ecx, [esi + PROCESS_SPACE]
    test ecx, ecx
    jz .Ldescribe_pages
    mov eax, [ecx + SPACE_PAGES]
.Ldescribe_pages:
    mov [edi + PROCESS_INFO_PAGES], eax
    mov eax, [esi + PROCESS_TICKS]
    mov [edi + PROCESS_INFO_TICKS], eax
    push esi
    lea esi, [esi + PROCESS_NAME]
    lea edi, [edi + PROCESS_INFO_NAME]
    mov ecx, PROCESS_NAME_BYTES / 4
    rep movsd
    pop esi
    pop edi
    ret

.section .rodata
process_letters:
    .ascii "--RRSZ"                 # by PROCESS_STATE
.p2align 2
batching_names:
    .long .Lname_batch_list, .Lname_batch_single, .Lname_batch_assist
.Lname_batch_list: .asciz "collected"
.Lname_batch_single: .asciz "one by one"
.Lname_batch_assist: .asciz "stored directly"

.p2align 2
# Text, offset, how to print it.
start_info_fields:
    .long .Lfield_pages, START_INFO_NR_PAGES, print_decimal
    .long .Lfield_shared, START_INFO_SHARED_INFO, print_hex
    .long .Lfield_flags, START_INFO_FLAGS, print_hex
    .long .Lfield_store, START_INFO_STORE_MFN, print_hex
    .long .Lfield_store_port, START_INFO_STORE_EVTCHN, print_decimal
    .long .Lfield_console, START_INFO_CONSOLE_DOMU_MFN, print_hex
    .long .Lfield_console_port, START_INFO_CONSOLE_DOMU_EVTCHN, print_decimal
    .long .Lfield_pt_base, START_INFO_PT_BASE, print_hex
    .long .Lfield_pt_frames, START_INFO_NR_PT_FRAMES, print_decimal
    .long .Lfield_mfn_list, START_INFO_MFN_LIST, print_hex
    .long .Lfield_mod_start, START_INFO_MOD_START, print_hex
    .long .Lfield_mod_len, START_INFO_MOD_LEN, print_decimal
    .long 0
.Lfield_pages: .asciz "  nr_pages "
.Lfield_shared: .asciz "  shared_info "
.Lfield_flags: .asciz "  flags "
.Lfield_store: .asciz "  store_mfn "
.Lfield_store_port: .asciz "  store_evtchn "
.Lfield_console: .asciz "  console.mfn "
.Lfield_console_port: .asciz "  console.evtchn "
.Lfield_pt_base: .asciz "  pt_base "
.Lfield_pt_frames: .asciz "  nr_pt_frames "
.Lfield_mfn_list: .asciz "  mfn_list "
.Lfield_mod_start: .asciz "  mod_start "
.Lfield_mod_len: .asciz "  mod_len "

.p2align 2
# Text, bit. Those that a PV guest may see.
feature_names:
    .long .Lfeature_wpt, XENFEAT_writable_page_tables
    .long .Lfeature_wdt, XENFEAT_writable_descriptor_tables
    .long .Lfeature_atp, XENFEAT_auto_translated_physmap
    .long .Lfeature_smk, XENFEAT_supervisor_mode_kernel
    .long .Lfeature_4gb, XENFEAT_pae_pgdir_above_4gb
    .long .Lfeature_pad, XENFEAT_mmu_pt_update_preserve_ad
    .long .Lfeature_hma, XENFEAT_highmem_assist
    .long .Lfeature_gab, XENFEAT_gnttab_map_avail_bits
    .long 0
.Lfeature_wpt: .asciz " writable_page_tables"
.Lfeature_wdt: .asciz " writable_descriptor_tables"
.Lfeature_atp: .asciz " auto_translated_physmap"
.Lfeature_smk: .asciz " supervisor_mode_kernel"
.Lfeature_4gb: .asciz " pae_pgdir_above_4gb"
.Lfeature_pad: .asciz " mmu_pt_update_preserve_ad"
.Lfeature_hma: .asciz " highmem_assist"
.Lfeature_gab: .asciz " gnttab_map_avail_bits"

.section .bss
.p2align 2
report_answer:
    .space SIZEOF_XEN_CAPABILITIES_INFO     # the longest answer that is asked for
