# SPDX-License-Identifier: GPL-2.0-or-later
#
# Programs: an ELF file of the RAM disk becomes the address space of the current process.
#
#   1. the words of the arguments are copied into a page;
#   2. the file is checked from head to end: nothing of it is believed;
#   3. a new address space is filled, page by page, with copies of the file's bytes, and a stack;
#   4. the process changes over to it, and its old one is gone.
#
# Until 4 every failure goes back to the program that asked, with all as it was.
#
#   0x08048000...        segments, each with pages of its own; writable or executable, never both
#   PROCESS_HEAP         behind the last page with bytes of the file: pages of zeros on demand,
#   PROCESS_BREAK        up to here: the rest of .bss, and the heap
#   STACK_TOP            words and their addresses, as Linux has it:
#
#     esp -> count | address of each word | 0 | 0 | ... | the words | STACK_TOP
#
# All of this holds the kernel lock and never sleeps: so the state of a loading lies in .bss.

.equ ELF_IDENT, 0x464C457F          # 7F "ELF"
.equ ELF_32_LITTLE, 0x0101          # two bytes: 32 bits, little-endian
.equ ELF_EXECUTABLE_386, 0x00030002 # two words: an executable, for i386
.equ ELF_CLASS, 4
.equ ELF_TYPE, 16
.equ ELF_ENTRY, 24
.equ ELF_PHOFF, 28
.equ ELF_PHENTSIZE, 42
.equ ELF_PHNUM, 44
.equ SIZEOF_ELF, 52
.equ ELF_PHNUM_MAX, 16

.equ PT_LOAD, 1
.equ PT_DYNAMIC, 2
.equ PT_INTERP, 3
.equ PH_TYPE, 0
.equ PH_OFFSET, 4
.equ PH_VADDR, 8
.equ PH_FILESZ, 16
.equ PH_MEMSZ, 20
.equ PH_FLAGS, 24
.equ PF_X, 1
.equ PF_W, 2
.equ SIZEOF_PH, 32

.equ EXEC_LOWEST, 0x10000           # page 0 stays unmapped, and so do its neighbours
.equ EXEC_LIMIT, 0x40000000
.equ EXEC_WORDS, 4                  # in the page of arguments: a count, then the words
.equ EXEC_STACK_ALIGNMENT, 16       # as compilers expect it

.section .text

# execve(path, arguments, 0)
sys_execve:
    push esi
    sub esp, PATH_MAX
    mov eax, esp
    mov edx, [ebx + FRAME_EBX]
    mov ecx, PATH_MAX
    call user_copy_text
    test eax, eax
    js .Lexecve_done
    call page_alloc
    test eax, eax
    jz .Lexecve_no_page
    mov esi, eax
    call exec_copy_words
    test eax, eax
    js .Lexecve_bad_words
    mov eax, esp
    mov edx, esi
    call exec_program
.Lexecve_done:
    add esp, PATH_MAX
    pop esi
    ret
.Lexecve_no_page:
    mov eax, -ENOMEM
    jmp .Lexecve_done
.Lexecve_bad_words:
    push eax
    mov eax, esi
    call page_free
    pop eax
    jmp .Lexecve_done

# Copy the words of execve's arguments. In: eax = page, ebx = frame. Out: eax = 0 or -errno.
exec_copy_words:
    push esi
    push edi
    push ebp
    mov esi, eax
    lea edi, [eax + EXEC_WORDS]
    mov ebp, [ebx + FRAME_ECX]      # address of the next word's address
    test ebp, ebp
    jz .Lcopy_words_done
.Lcopy_words_next:
    push 0
    mov eax, esp
    mov edx, ebp
    mov ecx, 4
    call user_copy_in
    pop edx
    test eax, eax
    js .Lcopy_words_out
    test edx, edx
    jz .Lcopy_words_done
    add ebp, 4
    inc dword ptr [esi]
    # room: for the text, beside its and all other addresses, the count and two zeros
    mov ecx, [esi]
    lea ecx, [edi + ecx * 4 + 12 - EXEC_WORDS]
    sub ecx, esi
    neg ecx
    add ecx, ARGUMENT_BYTES
    jle .Lcopy_words_too_big
    mov eax, edi
    call user_copy_text
    cmp eax, -ENAMETOOLONG
    je .Lcopy_words_too_big
    test eax, eax
    js .Lcopy_words_out
    lea edi, [edi + eax + 1]
    jmp .Lcopy_words_next
.Lcopy_words_too_big:
    mov eax, -E2BIG
    jmp .Lcopy_words_out
.Lcopy_words_done:
    xor eax, eax
.Lcopy_words_out:
    pop ebp
    pop edi
    pop esi
    ret

# Make the current process run a program from its beginning. In: eax = path, in the kernel's memory;
# edx = page of arguments, which is given back in any case, or 0 for the path alone; ebx = frame.
# Out: eax = 0 or -errno.
exec_program:
    push esi
    push edi
    mov [exec_path], eax
    mov [exec_arguments], edx
    mov dword ptr [exec_space], 0
    call ramdisk_find
    mov esi, eax
    test eax, eax
    mov eax, -ENOENT
    jz .Lexec_failed
    mov eax, esi
    call elf_check
    test eax, eax
    js .Lexec_failed
    call space_new
    mov [exec_space], eax
    test eax, eax
    jz .Lexec_no_memory
    mov eax, esi
    call exec_segments
    test eax, eax
    js .Lexec_failed
    call exec_stack
    test eax, eax
    js .Lexec_failed
    mov eax, [exec_space]
    call space_adopt
    mov eax, esi
    call exec_begin
    xor eax, eax
    jmp .Lexec_out
.Lexec_no_memory:
    mov eax, -ENOMEM
.Lexec_failed:
    mov edi, eax
    cmp dword ptr [exec_space], 0
    je .Lexec_no_space
    call port_flush_entries         # what is only collected cannot be found, to be given back
    mov eax, [exec_space]
    call space_free
    call port_flush_entries
.Lexec_no_space:
    mov eax, edi
.Lexec_out:
    mov edi, eax
    mov eax, [exec_arguments]
    test eax, eax
    jz .Lexec_no_page
    call page_free
.Lexec_no_page:
    mov eax, edi
    pop edi
    pop esi
    ret

# -- 2: is it a program? ---------------------------------------------------------------------

# Check a file. In: eax = its bytes, edx = how many. Out: eax = 0 or -ENOEXEC; exec_last.
# After this the headers can be read without a look at the file's size.
elf_check:
    push ebx
    push esi
    push edi
    push ebp
    mov ebx, eax
    mov ebp, edx
    cmp ebp, SIZEOF_ELF
    jb .Lelf_bad
    cmp dword ptr [ebx], ELF_IDENT
    jne .Lelf_bad
    cmp word ptr [ebx + ELF_CLASS], ELF_32_LITTLE
    jne .Lelf_bad
    cmp dword ptr [ebx + ELF_TYPE], ELF_EXECUTABLE_386
    jne .Lelf_bad
    cmp word ptr [ebx + ELF_PHENTSIZE], SIZEOF_PH
    jne .Lelf_bad
    movzx edi, word ptr [ebx + ELF_PHNUM]
    lea eax, [edi - 1]
    cmp eax, ELF_PHNUM_MAX
    jae .Lelf_bad                   # none, or too many
    mov esi, [ebx + ELF_PHOFF]
    mov eax, ebp
    sub eax, esi
    jb .Lelf_bad
    mov edx, edi
    shl edx, 5                      # SIZEOF_PH is 32
    cmp eax, edx
    jb .Lelf_bad
    add esi, ebx
    xor ecx, ecx                    # the end of the pages that are taken
.Lelf_header:
    mov eax, [esi + PH_TYPE]
    cmp eax, PT_INTERP
    je .Lelf_bad                    # it wants to be linked first
    cmp eax, PT_DYNAMIC
    je .Lelf_bad
    cmp eax, PT_LOAD
    jne .Lelf_next
    call elf_check_segment
    jc .Lelf_bad
    mov [exec_last], esi
.Lelf_next:
    add esi, SIZEOF_PH
    dec edi
    jnz .Lelf_header
    test ecx, ecx
    jz .Lelf_bad                    # nothing to load
    xor eax, eax
.Lelf_out:
    pop ebp
    pop edi
    pop esi
    pop ebx
    ret
.Lelf_bad:
    mov eax, -ENOEXEC
    jmp .Lelf_out

# Check a segment: its bytes lie in the file, its pages in a program's part of the address space and
# above those of the segment before. In: esi = header, ebp = size of the file, ecx = the end of the
# pages that are taken. Out: ecx = the new one; CF set where something is wrong.
elf_check_segment:
    mov eax, ebp
    sub eax, [esi + PH_OFFSET]
    jb .Lsegment_bad
    cmp eax, [esi + PH_FILESZ]
    jb .Lsegment_bad
    mov edx, [esi + PH_MEMSZ]
    cmp edx, [esi + PH_FILESZ]
    jb .Lsegment_bad
    mov eax, [esi + PH_VADDR]
    cmp eax, EXEC_LOWEST
    jb .Lsegment_bad
    cmp eax, EXEC_LIMIT
    jae .Lsegment_bad
    add edx, eax
    jc .Lsegment_bad
    cmp edx, EXEC_LIMIT
    ja .Lsegment_bad
    and eax, PAGE_MASK
    cmp eax, ecx
    jb .Lsegment_bad
    mov eax, [esi + PH_FLAGS]
    and eax, PF_W | PF_X
    cmp eax, PF_W | PF_X
    je .Lsegment_bad
    lea ecx, [edx + PAGE_SIZE - 1]
    and ecx, PAGE_MASK
    clc
    ret
.Lsegment_bad:
    stc
    ret

# -- 3: the new address space ----------------------------------------------------------------

# Load every segment into exec_space. In: eax = the file, checked. Out: eax = 0 or -ENOMEM; the heap
# in exec_heap and exec_break.
exec_segments:
    push esi
    push edi
    push ebp
    mov ebp, eax
    movzx edi, word ptr [eax + ELF_PHNUM]
    mov esi, [eax + ELF_PHOFF]
    add esi, eax
.Lsegments_next:
    cmp dword ptr [esi + PH_TYPE], PT_LOAD
    jne .Lsegments_skip
    mov eax, ebp
    call exec_segment
    test eax, eax
    js .Lsegments_out
.Lsegments_skip:
    add esi, SIZEOF_PH
    dec edi
    jnz .Lsegments_next
    xor eax, eax
.Lsegments_out:
    pop ebp
    pop edi
    pop esi
    ret

# Load a segment. In: eax = the file, esi = header. Out: eax = 0 or -ENOMEM.
# Pages without a byte of the file are left to demand where they are the last ones, and writable.
exec_segment:
    push ebx
    push edi
    push ebp
    mov ebp, eax
    mov ebx, [esi + PH_VADDR]
    mov edi, ebx
    and ebx, PAGE_MASK              # ebx = the page
    add edi, [esi + PH_MEMSZ]       # edi = the end
    mov [exec_break], edi
    cmp esi, [exec_last]
    jne .Lsegment_next
    test dword ptr [esi + PH_FLAGS], PF_W
    jz .Lsegment_next
    sub edi, [esi + PH_MEMSZ]
    add edi, [esi + PH_FILESZ]
.Lsegment_next:
    cmp ebx, edi
    jae .Lsegment_done
    call page_alloc
    test eax, eax
    jz .Lsegment_no_memory
    call exec_copy_page
    test dword ptr [esi + PH_FLAGS], PF_W
    jz .Lsegment_not_writable
    or eax, SPACE_WRITE
.Lsegment_not_writable:
    test dword ptr [esi + PH_FLAGS], PF_X
    jz .Lsegment_not_executable
    or eax, SPACE_EXEC
.Lsegment_not_executable:
    mov edx, ebx
    call exec_add_page
    test eax, eax
    js .Lsegment_out
    add ebx, PAGE_SIZE
    jmp .Lsegment_next
.Lsegment_done:
    mov [exec_heap], ebx
    test dword ptr [esi + PH_FLAGS], PF_W
    jnz .Lsegment_heap
    mov [exec_break], ebx           # the heap has no part in a page that is not writable
.Lsegment_heap:
    xor eax, eax
.Lsegment_out:
    pop ebp
    pop edi
    pop ebx
    ret
.Lsegment_no_memory:
    mov eax, -ENOMEM
    jmp .Lsegment_out

# Copy what the file has of a page. In: eax = page of zeros, ebx = its address in the program, ebp =
# the file, esi = header. Keeps eax.
exec_copy_page:
    push esi
    push edi
    mov edx, [esi + PH_VADDR]
    mov ecx, edx
    add ecx, [esi + PH_FILESZ]      # ecx = end of the bytes in the file
    lea edi, [ebx + PAGE_SIZE]
    cmp ecx, edi
    jbe .Lcopy_page_end
    mov ecx, edi
.Lcopy_page_end:
    mov edi, edx
    cmp edi, ebx
    jae .Lcopy_page_begin
    mov edi, ebx
.Lcopy_page_begin:
    sub ecx, edi                    # edi = first address, ecx = how many bytes
    jbe .Lcopy_page_done
    mov esi, [esi + PH_OFFSET]
    add esi, ebp
    sub esi, edx
    add esi, edi
    sub edi, ebx
    add edi, eax
    rep movsb
.Lcopy_page_done:
    pop edi
    pop esi
    ret

# Put a page into the new space, or give it back. In: eax = page | flags, edx = address in the
# program. Out: eax = 0 or -ENOMEM.
exec_add_page:
    push ebx
    mov ebx, eax
    mov ecx, eax
    mov eax, [exec_space]
    call space_add_page
    test eax, eax
    jns .Ladd_page_done
    xchg eax, ebx
    and eax, PAGE_MASK
    call page_free
    mov eax, ebx
.Ladd_page_done:
    pop ebx
    ret

# Make the first page of the stack. Out: eax = 0 or -ENOMEM; exec_esp.
exec_stack:
    push ebx
    push esi
    push edi
    push ebp
    call page_alloc
    test eax, eax
    jz .Lstack_no_memory
    mov ebx, eax
    call exec_measure_words         # esi = the words, edx = how many, ecx = bytes
    lea edi, [ebx + PAGE_SIZE]
    sub edi, ecx                    # the words lie at the end of the page,
    mov eax, edx
    neg eax
    lea ebp, [edi + eax * 4 - 12]   # their addresses, the count and two zeros below them
    and ebp, -EXEC_STACK_ALIGNMENT
    mov [ebp], edx
    mov eax, STACK_TOP - PAGE_SIZE
    sub eax, ebx                    # from the kernel's address of the page to the program's
    push eax
    add eax, ebp
    mov [exec_esp], eax
    pop eax
    push edi
.Lstack_word:
    dec edx
    js .Lstack_copy
    add ebp, 4
    lea ecx, [edi + eax]
    mov [ebp], ecx
.Lstack_letter:
    mov cl, [esi]
    inc esi
    mov [edi], cl
    inc edi
    test cl, cl
    jnz .Lstack_letter
    jmp .Lstack_word
.Lstack_copy:
    pop edi
    mov eax, ebx
    or eax, SPACE_WRITE
    mov edx, STACK_TOP - PAGE_SIZE
    call exec_add_page
.Lstack_out:
    pop ebp
    pop edi
    pop esi
    pop ebx
    ret
.Lstack_no_memory:
    mov eax, -ENOMEM
    jmp .Lstack_out

# Find the words of the arguments. Out: esi = the first, edx = how many, ecx = their bytes.
exec_measure_words:
    mov eax, [exec_arguments]
    mov esi, [exec_path]
    mov edx, 1
    test eax, eax
    jz .Lmeasure_begin
    mov edx, [eax]
    lea esi, [eax + EXEC_WORDS]
.Lmeasure_begin:
    push edx
    mov eax, esi
.Lmeasure_word:
    dec edx
    js .Lmeasure_done
.Lmeasure_letter:
    inc eax
    cmp byte ptr [eax - 1], 0
    jne .Lmeasure_letter
    jmp .Lmeasure_word
.Lmeasure_done:
    mov ecx, eax
    sub ecx, esi
    pop edx
    ret

# -- 4: the process becomes the program ------------------------------------------------------

# In: eax = the file, ebx = frame.
exec_begin:
    push esi
    push edi
    mov esi, eax
    lea edi, [ebx + FRAME_EDI]
    xor eax, eax
    mov ecx, (FRAME_WORD - FRAME_EDI) / 4
    rep stosd                       # nothing of the old program shows in the registers
    mov eax, [esi + ELF_ENTRY]
    mov [ebx + FRAME_EIP], eax
    mov eax, [exec_esp]
    mov [ebx + FRAME_USER_ESP], eax
    call process_current
    mov edi, eax
    mov eax, [exec_heap]
    mov [edi + PROCESS_HEAP], eax
    mov eax, [exec_break]
    mov [edi + PROCESS_BREAK_MIN], eax
    mov [edi + PROCESS_BREAK], eax
    mov eax, edi
    call fpu_forget
    add edi, PROCESS_NAME
    call exec_name
    pop edi
    pop esi
    ret

# Name a process after its program: what stands behind the last slash of the path, as far as there
# is room. In: edi = where to.
exec_name:
    mov esi, [exec_path]
    mov eax, esi
.Lname_look:
    mov dl, [eax]
    inc eax
    cmp dl, '/'
    jne .Lname_no_slash
    mov esi, eax
.Lname_no_slash:
    test dl, dl
    jnz .Lname_look
    mov ecx, PROCESS_NAME_BYTES - 1
.Lname_copy:
    lodsb
    stosb
    test al, al
    jz .Lname_done
    dec ecx
    jnz .Lname_copy
    mov byte ptr [edi], 0
.Lname_done:
    ret

.section .bss
.p2align 2
exec_path:
    .space 4
exec_arguments:
    .space 4                        # page or 0
exec_space:
    .space 4                        # what is being filled, or 0
exec_last:
    .space 4                        # header of the last segment
exec_heap:
    .space 4
exec_break:
    .space 4
exec_esp:
    .space 4
