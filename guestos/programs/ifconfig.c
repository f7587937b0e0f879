/* SPDX-License-Identifier: GPL-2.0-or-later */
/* ifconfig: show network interfaces, or give one its addresses. */

#include "network.h"

const char usage_text[] = "usage: ifconfig [eth0 [ADDRESS/BITS [GATEWAY]]]";

static u64 wide(const unsigned words[2])
{
    return (u64)words[1] << 32 | words[0];
}

static unsigned bits_of(unsigned mask)
{
    unsigned bits = 0;
    for (; mask; mask <<= 1)
        bits++;
    return bits;
}

static void print_mac(const unsigned char *mac)
{
    for (int i = 0; i < 6; i++)
        print("%s%x%x", i ? ":" : "", mac[i] >> 4, mac[i] & 15);
}

static void show(int number, const struct network_info *info)
{
    print("eth%d: %s, mac ", number, info->state == NETWORK_UP ? "up" : "down");
    print_mac(info->mac);
    print("\n  address ");
    if (info->address) {
        print_address(swap32(info->address));
        print("/%u", bits_of(swap32(info->mask)));
    } else {
        print("none");
    }
    if (info->gateway) {
        print(", gateway ");
        print_address(swap32(info->gateway));
    }
    print("\n  received %u packets, %D bytes; %u dropped, %u bad\n", info->rx_packets,
          wide(info->rx_bytes), info->rx_dropped, info->rx_bad);
    print("  sent %u packets, %D bytes; %u dropped\n", info->tx_packets, wide(info->tx_bytes),
          info->tx_dropped);
    print("  %u events from the backend, %u to it\n", info->events, info->notifies);
}

/* Read "10.0.0.2/24". */
static void parse_place(char *word, struct network_info *info)
{
    char *slash = word;
    while (*slash && *slash != '/')
        slash++;
    if (!*slash)
        usage();
    *slash = 0;
    unsigned bits = number_of(slash + 1, 0);
    if (bits > 32)
        usage();
    info->address = swap32(address_of(word));
    info->mask = swap32(bits ? ~0u << (32 - bits) : 0);
}

static void show_all(void)
{
    struct network_info info;
    int shown = 0;
    for (int number = 0; number < 10; number++)
        if (network(NETWORK_GET, number, &info) == 0) {
            show(number, &info);
            shown++;
        }
    if (!shown)
        print("no interfaces\n");
}

int main(int count, char **words)
{
    struct network_info info = {0};
    if (count == 1) {
        show_all();
        return 0;
    }
    int number = interface_of(words[1]);
    if (number < 0 || count > 4)
        usage();
    if (count >= 3)
        parse_place(words[2], &info);
    if (count == 4)
        info.gateway = swap32(address_of(words[3]));
    int error = network(count == 2 ? NETWORK_GET : NETWORK_SET, number, &info);
    if (error < 0)
        fail(words[1], error);
    if (count == 2)
        show(number, &info);
    return 0;
}
