/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The outer leg: between the overlay's device and the wire, where tunnel headers are put on and taken off.
 *
 * BPF takes it, for packets that it carries all the way and for those whose inner leg is the kernel's (netfilter
 * translates them, conntrack must see them), while the kernel itself was seen to take it with this peer lately: so
 * a route through another device, IPsec and the node's own firewall are the kernel's decision here too. A packet
 * that shall show it carries FL_TICKET_KERNEL.
 */
#ifndef FLANNEL_OUTER_H
#define FLANNEL_OUTER_H

#include "any_peer.h"
#include "lessons.h"
#include "udp.h"
#include "verdict.h"
#include "vxlan.h"

/*
 * With udp, for how long the relay sends alone once a peer is spoken to again, ns: what programs send may lack
 * checksum and cutting, and the other node must have seen by then that its way in is open.
 */
#define FL_RELAY_NS (FL_REVALIDATE_NS / 32)

/* Does BPF do the outer leg to this peer? Without tunnel there is none. */
static __always_inline bool may_send(const struct fl_peer *peer, __u64 now)
{
	if (fl_cfg.backend == FL_MODE_DIRECT || peer->mode == FL_MODE_DIRECT)
		return true;
	if (fl_cfg.backend == FL_MODE_UDP &&
	    peer->tx_until - now - (FL_REVALIDATE_NS - FL_RELAY_NS) - 1 < (__u64)FL_RELAY_NS)
		return false;
	return !is_past(peer->tx_until, now);
}

/* The kernel was seen to send to this peer as BPF would. */
static __always_inline void note_sent(struct fl_peer *peer, __u64 now)
{
	if (fl_cfg.backend != FL_MODE_UDP) {
		peer->tx_until = now + FL_REVALIDATE_NS;
		return;
	}
	if (!is_past(peer->tx_until, now))
		return; /* the relay's time alone is not to begin anew with each of its packets */
	if (is_past(peer->tx_until, now - FL_REVALIDATE_NS))
		peer->tx_until = now + FL_REVALIDATE_NS;
	else
		peer->tx_until = now + FL_REVALIDATE_NS - FL_RELAY_NS;
}

/*
 * For how long the kernel's way in is good once it was seen, ns. With udp twice as long as it is used for what a
 * relay sent: what programs sent may lack checksum and cutting, which no relay can make up for, and must find the
 * way open while the other node's relay shows it again.
 */
#define FL_RECEIVED_NS (fl_cfg.backend == FL_MODE_UDP ? 2 * FL_REVALIDATE_NS : FL_REVALIDATE_NS)

static __always_inline bool may_receive(const struct fl_peer *peer, __u64 now, bool from_relay)
{
	return !is_past(peer->rx_until, from_relay ? now + FL_REVALIDATE_NS : now);
}

/* A frame that the kernel sends out of the uplink: the tunnel packet that BPF would have made of its inside? */
static __always_inline enum fl_reason see_sent(struct __sk_buff *skb)
{
	const __u32 offset = fl_cfg.backend == FL_MODE_UDP ? FL_UDP_INNER : FL_VXLAN_INNER;
	struct fl_peer *peer;
	struct fl_outer *outer;
	ip_header *inner;
	void *data, *end;
	__u8 tos = 0;

	if (!readable(skb, offset + FL_IP_LEN, &data, &end))
		return FL_TRUNCATED;
	outer = data + FL_ETH_LEN;
	inner = data + offset;
	peer = find_peer(target_of(inner));
	if (!peer)
		return FL_NOT_OVERLAY;
	if (fl_cfg.backend == FL_MODE_VXLAN)
		tos = vxlan_outer_tos(tos_of(inner));
	if (skb->protocol != FL_ETHERTYPE || !is_own_outer(outer, public_ip(peer), tos))
		return FL_LEARN_CHANGED;
	note_sent(peer, clock_ns());
	return FL_LEARN_LEFT;
}

/* Any packet that this host sends out of the uplink: one of the udp backend's relay? */
static __always_inline enum fl_reason see_relay(struct __sk_buff *skb)
{
	struct fl_outer *outer = (void *)(long)skb->data + FL_ETH_LEN;

	if ((void *)(outer + 1) > (void *)(long)skb->data_end || skb->protocol != FL_ETHERTYPE ||
	    !may_be_udp(&outer->ip) || outer->udp.dest != bpf_htons(fl_cfg.port))
		return FL_GO_ON;
	return see_sent(skb);
}

/* A packet that the kernel took out of the tunnel; `ip` is readable. */
static __always_inline void see_received(const ip_header *ip)
{
	struct fl_peer *peer = find_peer(source_of(ip));
	__u64 now = clock_ns();

	if (peer && is_past(peer->rx_until, now + FL_RECEIVED_NS / 2))
		peer->rx_until = now + FL_RECEIVED_NS;
}

/*
 * A packet that the kernel sends into the tunnel, on the overlay's device: send it through as the device or the
 * relay would. `data` is the frame. FL_FAST_*: sent; FL_DROP_BROKEN; anything else: the kernel does it.
 */
static __noinline enum fl_reason wrap(struct __sk_buff *skb, void *data, void *end, struct fl_peer *peer)
{
	const __u32 link = fl_cfg.backend == FL_MODE_UDP ? 0 : FL_ETH_LEN;
	const __u32 headers = fl_cfg.backend == FL_MODE_UDP ? FL_UDP_OVERHEAD : FL_VXLAN_OVERHEAD;
	ip_header *ip = data + link;
	struct fl_packet p = {};
	enum fl_reason reason;

	p.len = length_of(ip);
	p.tos = tos_of(ip);
	if (skb->gso_size || fl_cfg.backend == FL_MODE_UDP || FL_UDP_CHECKSUM) {
		if ((void *)(ip + 1) + FL_L4_LEN > end)
			return FL_TRUNCATED;
		reason = parse_packet(ip, end, skb->len - link, false, 1, &p);
		if (reason)
			return reason;
	} else if (fl_cfg.outer_checksum && (void *)(ip + 1) + FL_L4_LEN <= end &&
		   parse_packet(ip, end, skb->len - link, false, 1, &p)) {
		p.headers = 0; /* its checksum cannot be told, and it may go without */
	}
	if (p.len != skb->len - link)
		return FL_BAD_HEADER;
	if (segment_len(skb, &p) + headers > peer->mtu || p.len + headers > 0xffff)
		return FL_TOO_BIG;
	if (fl_cfg.backend == FL_MODE_UDP)
		return udp_send(skb, ip, end, &p, 1, true, peer);
	if (!same_mac(data, peer->vtep_mac) && !for_any_peer(skb))
		return FL_INNER_MAC;
	return vxlan_send(skb, &p, 0, peer);
}

/*
 * A tunnel packet whose inner leg is the kernel's, every check of the outer one passed: hand what is inside to it,
 * on the overlay's device. FL_GO_ON: done; FL_DROP_BROKEN; anything else: the kernel does it all.
 */
static __always_inline enum fl_reason unwrap(struct __sk_buff *skb, const struct fl_peer *peer, __u8 outer_tos)
{
	enum fl_reason reason;
	struct ethhdr *eth;
	__u8 proto = 0;
	ip_header *ip;

	if (!overlay() || fl_cfg.learning)
		return FL_HELPER;
	if (fl_cfg.backend == FL_MODE_UDP) {
		if (skb->gso_size && bpf_skb_load_bytes(skb, FL_UDP_PROTO, &proto, sizeof(proto)))
			return FL_TRUNCATED;
		reason = udp_open(skb, proto, &ip);
		if (reason)
			return reason;
		decrement_ttl(ip, 1);
	} else {
		if (skb->gso_size)
			return FL_GSO;
		reason = vxlan_open(skb, outer_tos, proto, &ip);
		if (reason)
			return reason;
		eth = (struct ethhdr *)ip - 1;
		copy_mac(eth->h_dest, fl_cfg.vtep_mac);
		copy_mac(eth->h_source, peer->vtep_mac);
	}
	skb->FL_TICKET |= FL_TICKET_BPF;
	return bpf_redirect(overlay(), BPF_F_INGRESS) == TC_ACT_REDIRECT ? FL_GO_ON : FL_DROP_BROKEN;
}

#endif
