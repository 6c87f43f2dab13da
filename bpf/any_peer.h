/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Peers on demand: in a very large network few peers have a route, a neighbour and an FDB entry. All others share
 * one route by way of a station that does not exist, so that what the kernel sends there comes to fl_to_peer,
 * whose map knows every peer. Nobody has to be asked, the first packet goes as the last, and a scan of all
 * addresses leaves nothing behind in the kernel. The daemon sees in fl_asked which peers are worth objects of
 * their own.
 */
#ifndef FLANNEL_ANY_PEER_H
#define FLANNEL_ANY_PEER_H

#include "peers.h"

static __always_inline bool for_any_peer(const struct __sk_buff *skb)
{
	const __u8 station[] = FL_ANY_PEER_MAC;
	void *data = (void *)(long)skb->data;

	return data + FL_ETH_LEN <= (void *)(long)skb->data_end && same_mac(data, station);
}

static __always_inline void note_asked(ip_addr addr)
{
	struct fl_subnet key = peer_key(addr);
	struct fl_asked *asked = bpf_map_lookup_elem(&fl_asked, &key);
	struct fl_asked first = { .packets = 1 };

	if (asked)
		asked->packets++;
	else
		bpf_map_update_elem(&fl_asked, &key, &first, BPF_ANY);
}

#endif
