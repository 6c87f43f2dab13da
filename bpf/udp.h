/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * flannel's udp format: the bare IPv4 packet in UDP, both ports the tunnel's, as an ordinary socket sends it
 * (DF and therefore id 0, no ECN). Each side's relay is a hop of its own, so each side takes 2 from the TTL.
 */
#ifndef FLANNEL_UDP_H
#define FLANNEL_UDP_H

#include "send.h"
#include "tunnel.h"

#define FL_UDP_OVERHEAD (FL_IP_LEN + FL_UDP_LEN)
#define FL_UDP_INNER FL_OUTER_LEN /* offset of the inner IPv4 packet */

#define FL_IP_DF bpf_htons(0x4000)

static __always_inline enum fl_reason udp_send(struct __sk_buff *skb, const struct fl_packet *p,
					       const struct fl_peer_v4 *peer)
{
	__u32 len = p->len + FL_UDP_OVERHEAD;
	enum fl_reason reason;
	struct fl_outer *outer;
	void *data, *end;

	/* whole over a virtual link, a super-packet would reach the peer's relay as one huge datagram */
	if (skb->gso_size && !fl_cfg.uplink_segments)
		return FL_GSO;
	reason = make_room(skb, FL_UDP_OVERHEAD, 0);
	if (reason)
		return reason;
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if (data + FL_UDP_INNER + FL_IP_LEN > end)
		return FL_DROP_BROKEN;
	outer = data + FL_ETH_LEN;
	write_outer(outer, len, 0, FL_IP_DF, 0, public_ip(peer), fl_cfg.port);
	decrement_ttl((void *)(outer + 1), ttl_cost(FL_MODE_UDP));
	return send_to_peer(peer, FL_FAST_UDP);
}

/* Decapsulate a packet on which every check has passed, and deliver it. */
static __always_inline enum fl_reason udp_deliver(struct __sk_buff *skb, const struct fl_pod_v4 *pod)
{
	enum fl_reason reason;
	struct iphdr *ip;
	void *data, *end;

	reason = take_off(skb, FL_UDP_OVERHEAD);
	if (reason)
		return reason;
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	ip = data + FL_ETH_LEN;
	if ((void *)(ip + 1) > end)
		return FL_DROP_BROKEN;
	decrement_ttl(ip, ttl_cost(FL_MODE_UDP));
	return deliver(skb, data, pod, FL_FAST_UDP);
}

#endif
