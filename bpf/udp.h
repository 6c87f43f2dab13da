/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * flannel's udp format: the bare IPv4 packet in UDP, both ports the tunnel's, as an ordinary socket sends it
 * (DF, any id, no ECN). Each side's relay is a hop of its own, so each side takes 2 from the TTL.
 */
#ifndef FLANNEL_UDP_H
#define FLANNEL_UDP_H

#include "lessons.h"
#include "send.h"
#include "tunnel.h"

#ifdef FL_IPV6
/* flannel's udp backend is IPv4's alone, so none of this is ever reached; the verifier removes it. */
static __always_inline enum fl_reason udp_send(struct __sk_buff *skb, const ip_header *ip, const void *packet_end,
					       const struct fl_packet *p, __u8 hops, bool link,
					       const struct fl_peer *peer)
{
	return FL_NOT_OVERLAY;
}

static __always_inline enum fl_reason udp_open(struct __sk_buff *skb, __u8 proto, ip_header **ip)
{
	return FL_NOT_OVERLAY;
}
#else

#define FL_IP_DF bpf_htons(0x4000)

/* Sum of the pseudo header, which an L4 checksum field holds until a device fills it in. */
static __always_inline __u16 pseudo_sum(__u32 src, __u32 dst, __u8 proto, __u16 len)
{
	return fold((__u64)src + dst + bpf_htons(proto) + bpf_htons(len));
}

static __always_inline bool lacks_checksum(const ip_header *ip, const void *end, const struct fl_packet *p)
{
	const __u8 *l4 = (const void *)(ip + 1);
	const __u16 *check = (const void *)(l4 + (p->proto == IPPROTO_TCP ? 16 : 6));

	if (p->proto == IPPROTO_ICMP || (const void *)(check + 1) > end)
		return false;
	return *check == pseudo_sum(p->src, p->dst, p->proto, p->len - FL_IP_LEN);
}

/*
 * A pod leaves checksums and the cutting of super-packets to the last device. Hardware does both; a virtual
 * link does neither, and the peer's relay would read one huge datagram, or a packet that its pod throws away.
 * A peer's programs take both, except UDP super-packets, whose tunnel state they cannot remove.
 */
static __always_inline enum fl_reason check_finished(struct __sk_buff *skb, const ip_header *ip, const void *end,
						     const struct fl_packet *p, const struct fl_peer *peer)
{
	bool bpf = peer->flags & FL_PEER_BPF;

	if (fl_cfg.uplink_finishes)
		return FL_GO_ON;
	if (skb->gso_size)
		return bpf && p->proto == IPPROTO_TCP ? FL_GO_ON : FL_GSO;
	return !bpf && lacks_checksum(ip, end, p) ? FL_CHECKSUM : FL_GO_ON;
}

/*
 * Encapsulate and send; `hops`: what is still to be taken from the packet's TTL, `link`: the frame has no Ethernet
 * header yet. `ip` and `packet_end` as parsed.
 */
static __always_inline enum fl_reason udp_send(struct __sk_buff *skb, const ip_header *ip, const void *packet_end,
					       const struct fl_packet *p, __u8 hops, bool link,
					       const struct fl_peer *peer)
{
	__u32 len = p->len + FL_UDP_OVERHEAD;
	enum fl_reason reason;
	struct fl_outer *outer;
	void *data, *end;

	reason = check_finished(skb, ip, packet_end, p, peer);
	if (reason)
		return reason;
	reason = make_room(skb, FL_UDP_OVERHEAD, 0);
	if (reason)
		return reason;
	if (link && bpf_skb_change_head(skb, FL_ETH_LEN, 0))
		return FL_DROP_BROKEN;
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if (data + FL_UDP_INNER + FL_IP_LEN > end)
		return FL_DROP_BROKEN;
	outer = data + FL_ETH_LEN;
	write_outer(outer, len, 0, FL_IP_DF, bpf_get_prandom_u32(), public_ip(peer), fl_cfg.port);
	decrement_ttl((void *)(outer + 1), hops);
	if (!link)
		skb->FL_TICKET = FL_TICKET_DONE;
	return send_to_peer(skb, peer, !link, FL_FAST_UDP);
}

/*
 * A relay's datagram over a virtual link: its outer checksum is still to be done. The kernel goes on pointing at
 * it until bytes behind it are taken off; so eight bytes of the inner header go too, and are put back.
 */
static __always_inline enum fl_reason take_off_unfinished(struct __sk_buff *skb, __u8 proto)
{
	__u64 head;

	if (bpf_skb_load_bytes(skb, FL_UDP_INNER, &head, sizeof(head)) ||
	    take_off(skb, FL_UDP_OVERHEAD + 7, proto))
		return FL_HELPER;
	if (take_off(skb, 1, proto) || bpf_skb_adjust_room(skb, sizeof(head), BPF_ADJ_ROOM_MAC, 0) ||
	    bpf_skb_store_bytes(skb, FL_ETH_LEN, &head, sizeof(head), 0))
		return FL_DROP_BROKEN;
	return FL_GO_ON;
}

static __always_inline bool outer_unfinished(const struct fl_outer *outer)
{
	__u16 len = bpf_ntohs(outer->udp.len);

	return outer->udp.check == pseudo_sum(outer->ip.saddr, outer->ip.daddr, IPPROTO_UDP, len);
}

/* Take the outer headers off a packet on which every check has passed; *ip is then the inner packet. */
static __always_inline enum fl_reason udp_open(struct __sk_buff *skb, __u8 proto, ip_header **ip)
{
	const struct fl_outer *outer = (void *)(long)skb->data + FL_ETH_LEN;
	enum fl_reason reason;

	if ((void *)(outer + 1) > (void *)(long)skb->data_end)
		return FL_TRUNCATED;
	reason = outer_unfinished(outer) ? take_off_unfinished(skb, proto) : take_off(skb, FL_UDP_OVERHEAD, proto);
	if (reason)
		return reason;
	return inner_ip(skb, ip) ? FL_GO_ON : FL_DROP_BROKEN;
}

#endif

#endif
