/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* A pod's packet on its way out: parse, find the peer, admit, send. Read from the bottom up. */
#ifndef FLANNEL_FROM_POD_H
#define FLANNEL_FROM_POD_H

#include "admit.h"
#include "direct.h"
#include "outer.h"
#include "verdict.h"

static __always_inline __u32 overhead(const struct fl_peer *peer)
{
	switch (peer->mode) {
	case FL_MODE_VXLAN:
		return FL_VXLAN_OVERHEAD;
	case FL_MODE_UDP:
		return FL_UDP_OVERHEAD;
	default:
		return 0;
	}
}

/* Carry an admitted packet to its peer. fl_cfg.backend comes first, so that unused modes cost nothing. */
static __always_inline enum fl_reason send(struct __sk_buff *skb, ip_header *ip, const void *end,
					   const struct fl_packet *p, const struct fl_peer *peer)
{
	__u32 count = segments(skb);
	enum fl_reason reason;

	if (p->tos)
		skb->priority = priority_of(p->tos);
	if (fl_cfg.backend == FL_MODE_VXLAN && peer->mode == FL_MODE_VXLAN)
		reason = vxlan_send(skb, p, ttl_cost(FL_MODE_VXLAN), peer);
	else if (fl_cfg.backend == FL_MODE_UDP && peer->mode == FL_MODE_UDP)
		reason = udp_send(skb, ip, end, p, ttl_cost(FL_MODE_UDP), false, peer);
	else if (peer->mode == FL_MODE_DIRECT)
		reason = direct_send(skb, ip, peer);
	else
		return FL_NOT_OVERLAY;
	if (is_fast(reason))
		count_tx(peer, p, count);
	return reason;
}

/* A pod that sends tunnel packets could be any pod of any node. Fragments and options are looked at, too. */
static __always_inline bool is_forged_tunnel(const ip_header *ip, const void *end)
{
	const struct udphdr *udp;
	enum fl_reason reason;
	bool first;

	if (fl_cfg.backend == FL_MODE_DIRECT)
		return false;
	reason = find_udp(ip, end, &udp, &first);
	if (reason && reason != FL_TRUNCATED)
		return false;
	if (!reason && ((const void *)(udp + 1) > end || udp->dest != bpf_htons(fl_cfg.port)))
		return false;
	return same_addr(target_of(ip), own_ip()) || is_member(target_of(ip));
}

/* Not for another node's pods: the kernel's, whatever it is. */
static __always_inline enum fl_reason not_overlay(const ip_header *ip, const void *end)
{
	if (is_multicast(target_of(ip)))
		return FL_NOT_UNICAST;
	return fl_cfg.source_check != FL_CHECK_OFF && is_forged_tunnel(ip, end) ? FL_DROP_POD_TUNNEL
										: FL_NOT_OVERLAY;
}

static __always_inline enum fl_reason from_pod(struct __sk_buff *skb)
{
	enum fl_reason reason;
	struct fl_peer *peer;
	struct fl_packet p = {};
	struct ethhdr *eth;
	ip_header *ip;
	void *data, *end;
	__u64 now;

	if (!readable_ip(skb, FL_ETH_LEN, &data, &end))
		return FL_TRUNCATED;
	eth = data;
	ip = (void *)(eth + 1);
	hear_claim(skb, eth, end);
	if (eth->h_proto != FL_ETHERTYPE || skb->vlan_present)
		return FL_NOT_FAMILY;
	if (skb->FL_TICKET)
		skb->FL_TICKET = 0; /* a pod's own programs may have set it */
	if (eth->h_dest[0] & 1)
		return FL_NOT_UNICAST;
	now = clock_ns();
	if (stands_aside(now))
		return FL_STAND_ASIDE;
	if (!in_network(target_of(ip)) || in_own_subnet(target_of(ip)))
		return not_overlay(ip, end);
	peer = find_peer(target_of(ip));
	if (!peer || peer->mode == FL_MODE_NONE)
		return not_overlay(ip, end);
	if (!(fl_cfg.caps & FL_CAP_REDIRECT_NEIGH))
		return FL_HELPER;
	reason = parse_packet(ip, end, skb->len - FL_ETH_LEN, false, ttl_cost(fl_cfg.backend), &p);
	if (reason)
		return reason;
	if (segment_len(skb, &p) + overhead(peer) > peer->mtu || p.len + overhead(peer) > 0xffff)
		return FL_TOO_BIG;
	reason = admit_tx(skb, eth, end, &p, now);
	if (reason)
		return reason;
	return may_send(peer, now) ? send(skb, ip, end, &p, peer) : FL_LEARN_PEER;
}

#endif
