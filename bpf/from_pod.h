/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* A pod's packet on its way out: parse, find the peer, admit, send. Read from the bottom up. */
#ifndef FLANNEL_FROM_POD_H
#define FLANNEL_FROM_POD_H

#include "admit.h"
#include "direct.h"
#include "udp.h"
#include "verdict.h"
#include "vxlan.h"

static __always_inline __u32 overhead(const struct fl_peer_v4 *peer)
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
static __always_inline enum fl_reason send(struct __sk_buff *skb, struct iphdr *ip, const void *end,
					   const struct fl_packet *p, const struct fl_peer_v4 *peer)
{
	__u32 count = segments(skb);
	enum fl_reason reason;

	if (fl_cfg.backend == FL_MODE_VXLAN && peer->mode == FL_MODE_VXLAN)
		reason = vxlan_send(skb, p, peer);
	else if (fl_cfg.backend == FL_MODE_UDP && peer->mode == FL_MODE_UDP)
		reason = udp_send(skb, ip, end, p, peer);
	else if (peer->mode == FL_MODE_DIRECT)
		reason = direct_send(ip, peer);
	else
		return FL_NOT_OVERLAY;
	if (is_fast(reason))
		count_tx(peer, p, count);
	return reason;
}

static __always_inline enum fl_reason from_pod(struct __sk_buff *skb)
{
	enum fl_reason reason;
	struct fl_peer_v4 *peer;
	struct fl_packet p = {};
	struct ethhdr *eth;
	struct iphdr *ip;
	void *data, *end;

	if (!readable_ipv4(skb, FL_ETH_LEN, &data, &end))
		return FL_TRUNCATED;
	eth = data;
	ip = (void *)(eth + 1);
	if (eth->h_proto == bpf_htons(ETH_P_ARP))
		forget_moved_pod(skb, (void *)ip);
	if (eth->h_proto != bpf_htons(ETH_P_IP) || skb->vlan_present)
		return FL_NOT_IPV4;
	if (eth->h_dest[0] & 1)
		return FL_NOT_UNICAST;
	if (!in_network(ip->daddr) || in_own_subnet(ip->daddr))
		return is_multicast_v4(ip->daddr) ? FL_NOT_UNICAST : FL_NOT_OVERLAY;
	peer = find_peer(ip->daddr);
	if (!peer || peer->mode == FL_MODE_NONE)
		return FL_NOT_OVERLAY;
	if (!(fl_cfg.caps & FL_CAP_REDIRECT_NEIGH))
		return FL_HELPER;
	reason = parse_ipv4(ip, end, skb->len - FL_ETH_LEN, false, ttl_cost(fl_cfg.backend), &p);
	if (reason)
		return reason;
	if (segment_len(skb, &p) + overhead(peer) > peer->mtu || p.len + overhead(peer) > 0xffff)
		return FL_TOO_BIG;
	reason = FL_BY_FLOW ? admit_tx(skb, eth, &p) : check_sender(skb, eth, p.src);
	return reason ? reason : send(skb, ip, end, &p, peer);
}

#endif
