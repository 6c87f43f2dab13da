/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* A packet from another node: who sent it, match the tunnel, admit, deliver. Read from the bottom up. */
#ifndef FLANNEL_FROM_PEER_H
#define FLANNEL_FROM_PEER_H

#include "admit.h"
#include "direct.h"
#include "outer.h"
#include "sender.h"
#include "verdict.h"

/* What there is to know of a packet from a peer, once its outer side was found in order. */
struct fl_arrival {
	struct fl_peer *peer; /* who sent it */
	__u64 now;
	__u8 mode;
	__u8 tos;	 /* outer */
	__u8 from_relay; /* udp: 1 unless programs sent it */
	__u8 offset;	 /* of the inner IPv4 header */
};

/* Carry an admitted packet into its pod. */
static __always_inline enum fl_reason carry_in(struct __sk_buff *skb, const struct fl_arrival *a, ip_header *ip,
					       const struct fl_packet *p, const struct fl_pod *pod)
{
	enum fl_reason reason = FL_GO_ON;
	__u32 count = segments(skb);

	if (a->mode == FL_MODE_VXLAN)
		reason = vxlan_open(skb, a->tos, p->proto, &ip);
	else if (a->mode == FL_MODE_UDP)
		reason = udp_open(skb, p->proto, &ip);
	if (reason)
		return reason;
	decrement_ttl(ip, ttl_cost(a->mode));
	reason = deliver(skb, ip, pod, FL_FAST_VXLAN + (a->mode == FL_MODE_DIRECT) + 2 * (a->mode == FL_MODE_UDP));
	if (is_fast(reason))
		count_rx(a->peer, p, count);
	return reason;
}

/* The common end of the ways in: is it a packet that may leave the kernel's path, and does it? */
static __always_inline enum fl_reason admit(struct __sk_buff *skb, const struct fl_arrival *a, bool padded)
{
	struct fl_packet p = {};
	struct fl_pod *pod;
	enum fl_reason reason;
	ip_header *ip;
	void *data, *end;

	if (!readable_ip(skb, a->offset, &data, &end))
		return FL_TRUNCATED;
	ip = data + a->offset;
	reason = parse_packet(ip, end, skb->len - a->offset, padded, ttl_cost(a->mode), &p);
	if (reason)
		return reason;
	if (a->mode != FL_MODE_DIRECT && keeps_tunnel_state(skb, &p))
		return FL_GSO;
	reason = admit_rx(skb, ip, end, &p, ttl_cost(a->mode), a->now, &pod);
	if (reason)
		return reason;
	if (a->mode != FL_MODE_DIRECT && !may_receive(a->peer, a->now, a->from_relay))
		return FL_LEARN_PEER;
	return carry_in(skb, a, ip, &p, pod);
}

/* A plain packet on the uplink, from a host-gw peer to a local pod. */
static __always_inline enum fl_reason from_wire(struct __sk_buff *skb, __u64 now)
{
	struct fl_arrival a = { .now = now, .mode = FL_MODE_DIRECT, .offset = FL_ETH_LEN };
	ip_header *ip;
	void *data, *end;

	if (!readable(skb, FL_ETH_LEN + FL_IP_LEN, &data, &end))
		return FL_TRUNCATED;
	ip = data + FL_ETH_LEN;
	a.peer = find_peer(source_of(ip));
	if (!a.peer || a.peer->mode != FL_MODE_DIRECT)
		return FL_NOT_OVERLAY;
	return admit(skb, &a, true);
}

/* Is a tunnel packet's outer side as BPF can take it off? Fills in the rest of *a. */
static __always_inline enum fl_reason match_tunnel(struct __sk_buff *skb, struct fl_arrival *a)
{
	struct fl_outer *outer;
	enum fl_reason reason;
	struct ethhdr *inner;
	ip_header *ip;
	void *data, *end;

	a->mode = fl_cfg.backend;
	a->offset = a->mode == FL_MODE_UDP ? FL_UDP_INNER : FL_VXLAN_INNER;
	if (!readable(skb, a->offset + FL_IP_LEN, &data, &end))
		return FL_TRUNCATED;
	outer = data + FL_ETH_LEN;
	ip = data + a->offset;
	reason = match_outer(outer, skb->len);
	if (reason)
		return reason;
	a->tos = tos_of(&outer->ip);
	a->from_relay = a->mode == FL_MODE_UDP && outer->udp.check;
	if (a->mode == FL_MODE_UDP) {
		if (ttl_of(ip) <= 1)
			return FL_TTL; /* it ends at our relay */
		/* several datagrams of a relay in one piece: nothing has cut them on the way */
		return skb->gso_size && length_of(ip) != skb->len - FL_UDP_INNER ? FL_GSO : FL_GO_ON;
	}
	reason = match_vxlan((void *)(outer + 1));
	if (reason)
		return reason;
	inner = (struct ethhdr *)ip - 1;
	if (inner->h_proto != FL_ETHERTYPE)
		return FL_NOT_FAMILY;
	reason = match_inner_mac(inner);
	return reason ? reason : match_ecn(a->tos, tos_of(ip));
}

/* A packet for our public address. *taken: it goes on from the overlay's device. */
static __always_inline enum fl_reason from_tunnel(struct __sk_buff *skb, __u64 now, bool *taken)
{
	struct fl_arrival a = { .now = now };
	enum fl_reason reason;
	void *data, *end;

	if (!readable_part(skb, &data, &end))
		return FL_TRUNCATED;
	reason = check_sender_of(data + FL_ETH_LEN, end, &a.peer);
	if (reason)
		return reason;
	if (skb->pkt_type != 0) /* PACKET_HOST */
		return FL_NOT_UNICAST;
	if (skb->vlan_present)
		return FL_NOT_FAMILY;
	reason = match_tunnel(skb, &a);
	if (reason)
		return reason;
	if (!a.peer || a.peer->mode != fl_cfg.backend)
		return FL_NOT_OVERLAY;
	reason = admit(skb, &a, false);
	if (is_fast(reason) || is_drop(reason))
		return reason;
	if (may_receive(a.peer, now, a.from_relay)) {
		enum fl_reason unwrapped = unwrap(skb, a.peer, a.tos);

		*taken = !unwrapped;
		return unwrapped == FL_DROP_BROKEN ? unwrapped : reason;
	}
	if (!skb->FL_TICKET)
		skb->FL_TICKET = FL_TICKET_KERNEL;
	return reason;
}

/* tc ingress of the overlay's device: only the tunnel's packets are looked at, by their tickets, or with udp all.
 */
static __always_inline enum fl_reason from_overlay(struct __sk_buff *skb)
{
	__u32 offset = fl_cfg.backend == FL_MODE_UDP ? 0 : FL_ETH_LEN;
	__u32 ticket = skb->FL_TICKET;
	void *data, *end;

	if (ticket & FL_TICKET_BPF) {
		skb->FL_TICKET = ticket & ~FL_TICKET_BPF;
		return FL_UNWRAPPED;
	}
	if (!ticket && fl_cfg.backend != FL_MODE_UDP)
		return FL_GO_ON;
	if (ticket == FL_TICKET_KERNEL)
		skb->FL_TICKET = 0;
	if ((!offset || skb->protocol == FL_ETHERTYPE) && readable(skb, offset + FL_IP_LEN, &data, &end))
		see_received(data + offset);
	return FL_GO_ON;
}

static __always_inline enum fl_reason from_peer(struct __sk_buff *skb, bool *taken)
{
	struct ethhdr *eth;
	ip_header *ip;
	void *data, *end;
	__u64 now;

	if (fl_cfg.backend != FL_MODE_DIRECT && skb->ifindex != fl_cfg.uplink)
		return from_overlay(skb);
	if (skb->pkt_type == 3) /* PACKET_OTHERHOST */
		return FL_NOT_UNICAST;
	if (!readable(skb, FL_ETH_LEN + FL_IP_LEN, &data, &end))
		return FL_TRUNCATED;
	eth = data;
	ip = (void *)(eth + 1);
	if (eth->h_proto != FL_ETHERTYPE)
		return FL_NOT_FAMILY;
	if (fl_cfg.backend != FL_MODE_DIRECT && same_addr(target_of(ip), own_ip())) {
		if (!may_be_udp(ip))
			return FL_NOT_OVERLAY;
		now = clock_ns();
		return stands_aside(now) ? FL_STAND_ASIDE : from_tunnel(skb, now, taken);
	}
	if (skb->pkt_type != 0)
		return FL_NOT_UNICAST;
	if (skb->vlan_present)
		return FL_NOT_FAMILY;
	if ((fl_cfg.backend == FL_MODE_DIRECT || fl_cfg.direct_routing) && in_own_subnet(target_of(ip))) {
		now = clock_ns();
		return stands_aside(now) ? FL_STAND_ASIDE : from_wire(skb, now);
	}
	return FL_NOT_OVERLAY;
}

#endif
