/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Last steps shared by all modes: to the uplink, into the pod, and the peer's counters. */
#ifndef FLANNEL_SEND_H
#define FLANNEL_SEND_H

#include <linux/pkt_cls.h>

#include "peers.h"
#include "pods.h"

/* Packets on the wire. Asked before the headers change, which clears gso_segs. */
static __always_inline __u32 segments(struct __sk_buff *skb)
{
	return skb->gso_segs ? skb->gso_segs : 1;
}

static __always_inline struct fl_traffic *traffic_of(const struct fl_peer *peer)
{
	__u32 slot = peer->slot;

	return bpf_map_lookup_elem(&fl_peer_stats, &slot);
}

/* Bytes of all segments' IP packets. */
static __always_inline __u64 total_len(const struct fl_packet *p, __u32 segments)
{
	return p->len + (__u64)(segments - 1) * p->headers;
}

static __always_inline void count_tx(const struct fl_peer *peer, const struct fl_packet *p, __u32 segments)
{
	struct fl_traffic *traffic = traffic_of(peer);

	if (!traffic)
		return;
	traffic->tx_packets += segments;
	traffic->tx_bytes += total_len(p, segments);
}

static __always_inline void count_rx(const struct fl_peer *peer, const struct fl_packet *p, __u32 segments)
{
	struct fl_traffic *traffic = traffic_of(peer);

	if (!traffic)
		return;
	traffic->rx_packets += segments;
	traffic->rx_bytes += total_len(p, segments);
}

/*
 * Take the route that the kernel gave a packet from it: a tunnel key, which nothing on the uplink asks for, takes
 * its place. False when there is no memory for that.
 */
static __always_inline bool drop_route(struct __sk_buff *skb)
{
	struct {
		__u32 id;
		__u32 remote;
	} key = {};

	return !bpf_skb_set_tunnel_key(skb, (void *)&key, sizeof(key), 0);
}

/*
 * Out of the uplink. Neighbours are always the kernel's; the route too, unless the peer is on-link and
 * therefore its own next hop, which saves the lookup. A packet that the kernel has `routed` must not keep that
 * route in any case: by it, the kernel would look for its station again once ARP has the next hop's.
 */
static __always_inline enum fl_reason send_to_peer(struct __sk_buff *skb, const struct fl_peer *peer, bool routed,
						   enum fl_reason carried)
{
	struct bpf_redir_neigh next = { .nh_family = FL_AF };
	long verdict;

	/* veths of Linux 5.10 to 5.16 leave their own queue's number; volatile: as in deliver() */
	*(volatile __u32 *)&skb->queue_mapping = 0;
	set_next_hop(&next, public_ip(peer));
	if (peer->flags & FL_PEER_ON_LINK && (!routed || drop_route(skb)))
		verdict = bpf_redirect_neigh(fl_cfg.uplink, &next, sizeof(next), 0);
	else
		verdict = bpf_redirect_neigh(fl_cfg.uplink, NULL, 0, 0);
	return verdict == TC_ACT_REDIRECT ? carried : FL_DROP_BROKEN;
}

/* Into the pod. `ip` has an Ethernet header in front of it, whatever is in it. */
static __always_inline enum fl_reason deliver(struct __sk_buff *skb, ip_header *ip, const struct fl_pod *pod,
					      enum fl_reason carried)
{
	struct ethhdr *eth = (struct ethhdr *)ip - 1;
	long verdict;

	copy_mac(eth->h_dest, pod->mac);
	copy_mac(eth->h_source, pod->gateway_mac);
	/* neither the uplink's queue number nor a mark means anything in there */
	skb->queue_mapping = 0;
	/* volatile: no store for both fields at once, which the verifier refuses */
	*(volatile __u32 *)&skb->mark = 0;
	if (fl_cfg.caps & FL_CAP_REDIRECT_PEER)
		verdict = bpf_redirect_peer(pod->ifindex, 0);
	else
		verdict = bpf_redirect(pod->ifindex, 0);
	return verdict == TC_ACT_REDIRECT ? carried : FL_DROP_BROKEN;
}

#endif
