/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* host-gw, and vxlan's DirectRouting: no outer header, the peer is the next hop. */
#ifndef FLANNEL_DIRECT_H
#define FLANNEL_DIRECT_H

#include "send.h"

/* `ip` is the packet in place; every check has passed. */
static __always_inline enum fl_reason direct_send(struct __sk_buff *skb, ip_header *ip, const struct fl_peer *peer)
{
	decrement_ttl(ip, ttl_cost(FL_MODE_DIRECT));
	return send_to_peer(skb, peer, false, FL_FAST_DIRECT);
}

/* Would send_to_peer() reach the station that the kernel just sent this frame to? */
static __always_inline bool same_next_hop(struct __sk_buff *skb, const struct ethhdr *eth, struct fl_peer *peer)
{
	struct bpf_fib_lookup route = { .family = FL_AF, .ifindex = fl_cfg.uplink };
	const __u16 *dmac = (const __u16 *)route.dmac; /* two bytes off a word */
	const __u16 *dest = (const __u16 *)eth->h_dest;

	if (!(peer->flags & FL_PEER_ON_LINK) || same_mac(eth->h_dest, peer->next_mac))
		return true;
	set_route(&route, own_ip(), public_ip(peer));
	if (bpf_fib_lookup(skb, &route, sizeof(route), BPF_FIB_LOOKUP_DIRECT | BPF_FIB_LOOKUP_OUTPUT) ||
	    dmac[0] != dest[0] || dmac[1] != dest[1] || dmac[2] != dest[2])
		return false;
	copy_mac(peer->next_mac, eth->h_dest);
	return true;
}

#endif
