/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the kernel delivers to a pod: notes for admission, and where the pod lives. No packet is changed. */
#ifndef FLANNEL_TO_POD_H
#define FLANNEL_TO_POD_H

#include "admit.h"

static __always_inline enum fl_reason to_pod(struct __sk_buff *skb)
{
	struct fl_lesson *lesson, here = {};
	__u32 ticket = skb->FL_TICKET;
	struct fl_packet p = {};
	enum fl_reason reason;
	__u64 now = clock_ns();
	struct ethhdr *eth;
	ip_header *ip;
	void *data, *end;

	if (skb->protocol != FL_ETHERTYPE)
		return FL_NOT_FAMILY; /* the other family's programs have tickets of their own */
	skb->FL_TICKET = 0;
	lesson = take_lesson(ticket, now);
	/* a neighbour on the bridge may have forged a ticket */
	if (!lesson || (skb->ingress_ifindex != overlay() && skb->ingress_ifindex != fl_cfg.uplink))
		return FL_LEARN_LATE;
	if (!readable_ip(skb, FL_ETH_LEN, &data, &end))
		return FL_TRUNCATED;
	eth = data;
	ip = (void *)(eth + 1);
	reason = parse_packet(ip, end, skb->len - FL_ETH_LEN, true, 0, &p);
	if (reason)
		return reason;
	if (eth->h_dest[0] & 1)
		return FL_NOT_UNICAST;
	if (!in_own_subnet(p.dst))
		return FL_NOT_OVERLAY;
	learn_pod(skb, eth, p.dst);
	if (!FL_BY_FLOW)
		return FL_LEARN_DELIVERED;
	if (!describe(&here, skb, ip, end, &p, ttl_of(ip), FL_WAY_IN))
		return FL_TRUNCATED;
	return end_lesson(lesson, &here, p.tcp_flags, skb->ifindex, now);
}

#endif
