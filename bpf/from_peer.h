/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* A packet from another node: match the tunnel, check who sent it, admit, deliver. Read from the bottom up. */
#ifndef FLANNEL_FROM_PEER_H
#define FLANNEL_FROM_PEER_H

#include "admit.h"
#include "direct.h"
#include "udp.h"
#include "verdict.h"
#include "vxlan.h"

/* The common end of the three ways in: `mode` is how the packet came, `peer` who sent it, NULL if not known. */
static __always_inline enum fl_reason carry_in(struct __sk_buff *skb, enum fl_mode mode, struct iphdr *ip,
					       const struct fl_packet *p, const struct fl_peer_v4 *peer,
					       __u8 outer_tos)
{
	struct fl_pod_v4 *pod;
	enum fl_reason reason;
	__u32 count;

	reason = admit_rx(skb, p, &pod);
	if (reason)
		return reason;
	count = segments(skb);
	if (mode == FL_MODE_VXLAN)
		reason = vxlan_deliver(skb, p, pod, outer_tos);
	else if (mode == FL_MODE_UDP)
		reason = udp_deliver(skb, pod);
	else
		reason = direct_deliver(skb, ip, pod);
	if (peer && is_fast(reason))
		count_rx(peer, p, count);
	return reason;
}

/* A plain packet on the uplink, from a host-gw peer to a local pod. */
static __always_inline enum fl_reason from_wire(struct __sk_buff *skb)
{
	struct fl_peer_v4 *peer;
	struct fl_packet p = {};
	enum fl_reason reason;
	struct iphdr *ip;
	void *data, *end;

	if (!readable_ipv4(skb, FL_ETH_LEN, &data, &end))
		return FL_TRUNCATED;
	ip = data + FL_ETH_LEN;
	peer = find_peer(ip->saddr);
	if (!peer || peer->mode != FL_MODE_DIRECT)
		return FL_NOT_OVERLAY;
	reason = parse_ipv4(ip, end, skb->len - FL_ETH_LEN, true, ttl_cost(FL_MODE_DIRECT), &p);
	if (reason)
		return reason;
	return carry_in(skb, FL_MODE_DIRECT, ip, &p, peer, 0);
}

/*
 * Who sent a tunnel packet: *peer holds the inner source's subnet, NULL for what check_peer_source() lets pass
 * without. FL_GO_ON: it may send it, and its packets are not left to the kernel.
 */
static __always_inline enum fl_reason find_sender(__u32 outer, __u32 inner, struct fl_peer_v4 **peer)
{
	enum fl_reason reason;

	*peer = find_peer(inner);
	reason = check_peer_source(*peer, outer, inner);
	if (reason)
		return reason;
	return *peer && (*peer)->mode == FL_MODE_NONE ? FL_NOT_OVERLAY : FL_GO_ON;
}

static __always_inline enum fl_reason from_vxlan(struct __sk_buff *skb)
{
	struct fl_outer *outer;
	struct fl_peer_v4 *peer;
	struct fl_packet p = {};
	struct fl_vxlan *vxlan;
	struct ethhdr *inner;
	enum fl_reason reason;
	struct iphdr *ip;
	void *data, *end;
	__u8 outer_tos;

	if (!readable_ipv4(skb, FL_VXLAN_INNER, &data, &end))
		return FL_TRUNCATED;
	outer = data + FL_ETH_LEN;
	vxlan = (void *)(outer + 1);
	inner = (void *)(vxlan + 1);
	ip = (void *)(inner + 1);
	reason = match_vxlan(vxlan);
	if (reason)
		return reason;
	if (inner->h_proto != bpf_htons(ETH_P_IP)) {
		reason = check_member(outer->ip.saddr);
		return reason ? reason : FL_NOT_IPV4;
	}
	reason = find_sender(outer->ip.saddr, ip->saddr, &peer);
	if (reason)
		return reason;
	reason = match_inner_mac(inner);
	if (reason)
		return reason;
	outer_tos = outer->ip.tos;
	reason = parse_ipv4(ip, end, skb->len - FL_VXLAN_INNER, false, ttl_cost(FL_MODE_VXLAN), &p);
	if (reason)
		return reason;
	reason = match_ecn(outer_tos, p.tos);
	if (reason)
		return reason;
	if (keeps_tunnel_state(skb, &p))
		return FL_GSO;
	return carry_in(skb, FL_MODE_VXLAN, ip, &p, peer, outer_tos);
}

/* *taken: the packet goes on from the TUN. */
static __always_inline enum fl_reason from_udp(struct __sk_buff *skb, bool *taken)
{
	struct fl_outer *outer;
	struct fl_peer_v4 *peer;
	struct fl_packet p = {};
	enum fl_reason reason;
	struct iphdr *ip;
	void *data, *end;

	if (!readable_ipv4(skb, FL_UDP_INNER, &data, &end))
		return FL_TRUNCATED;
	outer = data + FL_ETH_LEN;
	ip = (void *)(outer + 1);
	if (skb->gso_size && bpf_ntohs(ip->tot_len) != skb->len - FL_UDP_INNER)
		return FL_GSO; /* several datagrams of a relay in one piece: nothing has cut them on the way */
	reason = find_sender(outer->ip.saddr, ip->saddr, &peer);
	if (reason)
		return reason;
	reason = parse_ipv4(ip, end, skb->len - FL_UDP_INNER, false, ttl_cost(FL_MODE_UDP), &p);
	if (reason)
		return reason;
	if (keeps_tunnel_state(skb, &p))
		return FL_GSO;
	reason = carry_in(skb, FL_MODE_UDP, ip, &p, peer, 0);
	if (!is_fast(reason) && !is_drop(reason))
		*taken = udp_to_kernel(skb);
	return reason;
}

static __always_inline enum fl_reason from_peer(struct __sk_buff *skb, bool *taken)
{
	enum fl_reason reason;
	struct ethhdr *eth;
	struct iphdr *ip;
	void *data, *end;

	if (skb->pkt_type != 0) /* PACKET_HOST */
		return FL_NOT_UNICAST;
	if (!readable(skb, FL_OUTER_LEN, &data, &end))
		return FL_TRUNCATED;
	eth = data;
	ip = (void *)(eth + 1);
	if (eth->h_proto != bpf_htons(ETH_P_IP) || skb->vlan_present)
		return FL_NOT_IPV4;
	if (fl_cfg.backend != FL_MODE_DIRECT && ip->daddr == FL_CFG_ADDR(public_ip)) {
		reason = match_outer(eth, skb->len);
		if (reason)
			return reason;
		return fl_cfg.backend == FL_MODE_UDP ? from_udp(skb, taken) : from_vxlan(skb);
	}
	if ((fl_cfg.backend == FL_MODE_DIRECT || fl_cfg.direct_routing) && in_own_subnet(ip->daddr))
		return from_wire(skb);
	return FL_NOT_OVERLAY;
}

#endif
