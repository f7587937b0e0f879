# SPDX-License-Identifier: GPL-2.0-or-later
#
# Rings: requests to a backend and its responses, in one shared page (public/io/ring.h).
#
#   | req_prod | req_event | rsp_prod | rsp_event | ... SIZEOF_SRING | slot 0 | slot 1 | ...
#
# Both kinds use the same slots. Indexes only grow, modulo 2^32; an entry lies at index % slots. The
# ends' own counts are not in the page, where the other one could change them, but in a "front":
#
#   FRONT_TAKEN <= (responses to take) <= rsp_prod <= (in work) <= FRONT_PUBLISHED <= FRONT_PUT
#
# The backend may be broken, or hostile. rsp_prod is read once for each look, and what cannot be is
# told by CF: then the device is given up (xenbus_break), and nothing of the page is used any more.
# A response is copied out, field by field, each read once; its id says which request it answers,
# and the driver believes that only if such a request is in work.
#
# Events. Each end says by its event index from which entry on it wants to be told. ring_publish
# says whether the backend does; ring_rest, the last look before the driver waits, asks to be told
# of the next response, and looks again, for that one may have come meanwhile.

.equ FRONT_PAGE, 0
.equ FRONT_PUT, 4                   # requests put in
.equ FRONT_PUBLISHED, 8             # those of them that the backend was shown
.equ FRONT_TAKEN, 12                # responses taken out
.equ SIZEOF_FRONT, 16

# The address of an entry. \to becomes it; \front is kept. \index is FRONT_PUT for the request that
# is put in next (count it afterwards), FRONT_TAKEN for the response that is taken next.
.macro RING_SLOT to, front, index, slots, size
    mov \to, [\front + \index]
    and \to, \slots - 1
    imul \to, \to, \size
    add \to, [\front + FRONT_PAGE]
    add \to, SIZEOF_SRING
.endm

# How many requests can be put in? \to becomes the number.
.macro RING_ROOM to, front, slots
    mov \to, [\front + FRONT_TAKEN]
    sub \to, [\front + FRONT_PUT]
    add \to, \slots
.endm

.section .text

# Begin with an empty ring. In: eax = front, edx = page, which no backend uses.
ring_open:
    mov [eax + FRONT_PAGE], edx
    xor ecx, ecx
    mov [eax + FRONT_PUT], ecx
    mov [eax + FRONT_PUBLISHED], ecx
    mov [eax + FRONT_TAKEN], ecx
    mov [edx + SRING_REQ_PROD], ecx
    mov [edx + SRING_RSP_PROD], ecx
    inc ecx                         # both ends want to be told of the first entry
    mov [edx + SRING_REQ_EVENT], ecx
    mov [edx + SRING_RSP_EVENT], ecx
    ret

# Show the backend what was put in. In: eax = front. Out: eax = 1 where it wants an event for it, 0
# where not.
ring_publish:
    push ebx
    mov ebx, [eax + FRONT_PAGE]
    mov ecx, [eax + FRONT_PUT]
    mov edx, ecx
    sub edx, [eax + FRONT_PUBLISHED]        # how many are new
    mov [eax + FRONT_PUBLISHED], ecx
    mov eax, ecx
    # Its index must be shown before the other's is read; a plain store may come later than that.
    xchg [ebx + SRING_REQ_PROD], eax
    sub ecx, [ebx + SRING_REQ_EVENT]
    xor eax, eax
    cmp ecx, edx                    # the entry that it waits for is among the new ones
    setb al
    pop ebx
    ret

# Look for responses. In: eax = front. Out: ecx = how many can be taken; CF set where the backend
# claims more than there are requests. Keeps eax.
ring_waiting:
    mov edx, [eax + FRONT_PAGE]
    mov ecx, [edx + SRING_RSP_PROD]
    sub ecx, [eax + FRONT_TAKEN]
    mov edx, [eax + FRONT_PUBLISHED]
    sub edx, [eax + FRONT_TAKEN]
    cmp edx, ecx
    ret

# Have the next response told by an event, and look for responses once more. In and out: as above.
ring_rest:
    mov edx, [eax + FRONT_PAGE]
    mov ecx, [eax + FRONT_TAKEN]
    inc ecx
    xchg [edx + SRING_RSP_EVENT], ecx
    jmp ring_waiting
