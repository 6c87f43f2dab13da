/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the kernel lets out towards a peer: notes for admission, and the tunnel's headers. */
#ifndef FLANNEL_TO_PEER_H
#define FLANNEL_TO_PEER_H

#include "direct.h"
#include "outer.h"

/* Compare a packet with its lesson. `offset` of its IPv4 header; `peer` that it goes to, or NULL. */
static __noinline enum fl_reason learn_left(struct __sk_buff *skb, __u32 ticket, __u32 offset)
{
	struct fl_lesson *lesson, here = {};
	struct fl_packet p = {};
	struct fl_peer *peer;
	enum fl_reason reason;
	__u64 now = clock_ns();
	ip_header *ip;
	void *data, *end;

	lesson = take_lesson(ticket, now);
	if (!lesson)
		return FL_LEARN_LATE;
	if (!readable_ip(skb, offset, &data, &end))
		return FL_TRUNCATED;
	ip = data + offset;
	reason = parse_packet(ip, end, skb->len - offset, true, 0, &p);
	if (reason)
		return reason;
	if (!describe(&here, skb, ip, end, &p, ttl_of(ip), FL_WAY_OUT))
		return FL_TRUNCATED;
	peer = find_peer(p.dst);
	if (!peer || skb->priority != priority_of(p.tos))
		here.ttl = 0; /* not as BPF would have sent it */
	else if (peer->mode == FL_MODE_DIRECT && offset && !same_next_hop(skb, data, peer))
		here.ttl = 0;
	else if (peer->mode == FL_MODE_VXLAN && !same_mac(data, peer->vtep_mac) && !for_any_peer(skb))
		here.ttl = 0;
	return end_lesson(lesson, &here, p.tcp_flags, lesson->ifindex, now);
}

/*
 * A frame for FL_ANY_PEER: no device of the kernel knows that station, so it is sent here or not at all, also
 * while the daemon is silent, and whether or not the kernel was seen to take the outer leg.
 */
static __always_inline enum fl_reason to_any_peer(struct __sk_buff *skb, bool *sent)
{
	struct fl_peer *peer;
	ip_header *ip;
	void *data, *end;

	if (!readable(skb, FL_ETH_LEN + FL_IP_LEN, &data, &end)) /* a last fragment may be as short */
		return FL_TRUNCATED;
	ip = data + FL_ETH_LEN;
	peer = find_peer(target_of(ip));
	if (!peer || peer->mode != FL_MODE_VXLAN)
		return FL_DROP_NO_PEER;
	note_asked(target_of(ip));
	skb->FL_TICKET = FL_TICKET_BPF;
	*sent = is_fast(wrap(skb, data, end, peer));
	return *sent ? FL_GO_ON : FL_DROP_NO_PEER;
}

/* tc egress of the overlay's device. *sent: BPF has sent it on. */
static __always_inline enum fl_reason to_overlay(struct __sk_buff *skb, bool *sent)
{
	__u32 offset = fl_cfg.backend == FL_MODE_UDP ? 0 : FL_ETH_LEN; /* a TUN has no link layer */
	__u32 ticket = skb->FL_TICKET;
	enum fl_reason reason = FL_GO_ON;
	struct fl_peer *peer;
	ip_header *ip;
	void *data, *end;
	__u64 now;

	if (offset && skb->protocol != FL_ETHERTYPE) /* without a link layer, the version says it */
		return FL_NOT_FAMILY;
	if (ticket) {
		skb->FL_TICKET = 0;
		reason = learn_left(skb, ticket, offset);
	}
	if (fl_cfg.backend == FL_MODE_VXLAN && for_any_peer(skb)) {
		enum fl_reason lost = to_any_peer(skb, sent);

		return lost ? lost : reason;
	}
	now = clock_ns();
	if (stands_aside(now) || !readable_ip(skb, offset, &data, &end))
		return reason;
	ip = data + offset;
	peer = find_peer(target_of(ip));
	if (!peer || peer->mode != fl_cfg.backend || !(fl_cfg.caps & FL_CAP_REDIRECT_NEIGH))
		return reason;
	if (may_send(peer, now)) {
		enum fl_reason wrapped;

		skb->FL_TICKET = FL_TICKET_BPF;
		wrapped = wrap(skb, data, end, peer);
		*sent = is_fast(wrapped);
		if (*sent)
			return reason;
		if (wrapped == FL_DROP_BROKEN)
			return wrapped;
	}
	skb->FL_TICKET = FL_TICKET_KERNEL;
	return reason;
}

/* tc egress of the uplink: only packets with a ticket are looked at, and with udp what a relay sends. */
static __always_inline enum fl_reason to_wire(struct __sk_buff *skb)
{
	__u32 ticket = skb->FL_TICKET;

	if (!ticket)
		return fl_cfg.backend == FL_MODE_UDP ? see_relay(skb) : FL_GO_ON;
	if (skb->protocol != FL_ETHERTYPE)
		return FL_NOT_FAMILY;
	skb->FL_TICKET = 0;
	if (ticket == FL_TICKET_DONE)
		return FL_GO_ON;
	if (ticket & FL_TICKET_BPF)
		return FL_WRAPPED;
	if (ticket == FL_TICKET_KERNEL)
		return see_sent(skb);
	return learn_left(skb, ticket, FL_ETH_LEN);
}

static __always_inline enum fl_reason to_peer(struct __sk_buff *skb, bool *sent)
{
	if (fl_cfg.backend != FL_MODE_DIRECT && skb->ifindex != fl_cfg.uplink)
		return to_overlay(skb, sent);
	return to_wire(skb);
}

#endif
