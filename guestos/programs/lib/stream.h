/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What pktgen sends and udpsink counts: numbered datagrams, many with one call. */
#ifndef STREAM_H
#define STREAM_H

#include "network.h"

enum { BATCH = 128, STREAM_MAGIC = 0x67745A1E };

/* A datagram begins so; the rest are bytes that follow from the number. */
struct stream {
    unsigned magic;
    unsigned number;
    unsigned total;                 /* how many the sender means to send */
    unsigned sum;                   /* of these four words: 0 */
};

#endif
