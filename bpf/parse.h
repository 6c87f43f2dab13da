/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * From bytes to struct fl_packet. A helper returns FL_GO_ON to go on, any other reason to stop there.
 * Callers prove once per layer that a layer's bytes are readable.
 */
#ifndef FLANNEL_PARSE_H
#define FLANNEL_PARSE_H

#ifdef FL_IPV6
#include "ipv6.h"
#else
#include "ipv4.h"
#endif

/* Takes the place of the answering side's port in an ICMP echo: who asks and who answers are two flows. */
#define FL_ICMP_ECHO bpf_htons(8)

/*
 * L4 header of a packet that is not a fragment. `l4` has FL_L4_LEN readable bytes, `end` bounds the rest.
 */
static __always_inline enum fl_reason parse_l4(const __u8 *l4, const void *end, struct fl_packet *p)
{
	__u8 l4_len = FL_L4_LEN;

	switch (p->proto) {
	case IPPROTO_TCP:
		if ((const void *)(l4 + FL_TCP_LEN) > end)
			return FL_TRUNCATED;
		p->tcp_flags = l4[13];
		l4_len = (l4[12] >> 4) * 4;
		if (l4_len < FL_TCP_LEN)
			return FL_BAD_HEADER;
		break;
	case IPPROTO_UDP:
		if (FL_UDP_CHECKSUM && !*(const __u16 *)(l4 + 6))
			return FL_CHECKSUM;
		break;
	case FL_ICMP:
		if (is_link_icmp(l4[0]))
			return FL_PROTOCOL;
		p->no_flow = (l4[0] != FL_ICMP_REQUEST && l4[0] != FL_ICMP_REPLY) || l4[1];
		p->sport = l4[0] != FL_ICMP_REPLY ? *(const __u16 *)(l4 + 4) : FL_ICMP_ECHO;
		p->dport = l4[0] != FL_ICMP_REPLY ? FL_ICMP_ECHO : *(const __u16 *)(l4 + 4);
		p->headers = FL_IP_LEN + FL_L4_LEN;
		return p->len < p->headers ? FL_TRUNCATED : FL_GO_ON;
	default:
		return FL_PROTOCOL;
	}
	p->sport = *(const __u16 *)l4;
	p->dport = *(const __u16 *)(l4 + 2);
	p->headers = FL_IP_LEN + l4_len;
	return p->len < p->headers ? FL_TRUNCATED : FL_GO_ON;
}

/*
 * A packet that may be carried: see parse_ip() of the family, and known L4. FL_IP_LEN + FL_L4_LEN bytes at `ip`
 * are readable; `room` is what the frame holds from `ip` on. `padded` accepts link-layer padding behind the
 * packet.
 */
static __always_inline enum fl_reason parse_packet(const ip_header *ip, const void *end, __u32 room, bool padded,
						   __u8 hop_cost, struct fl_packet *p)
{
	enum fl_reason reason = parse_ip(ip, room, padded, hop_cost, p);

	return reason ? reason : parse_l4((const __u8 *)(ip + 1), end, p);
}

/* Make the first `need` bytes of the frame readable. */
static __always_inline bool readable(struct __sk_buff *skb, __u32 need, void **data, void **end)
{
	*data = (void *)(long)skb->data;
	*end = (void *)(long)skb->data_end;
	if (*data + need <= *end)
		return true;
	if (skb->len < need || bpf_skb_pull_data(skb, need))
		return false;
	*data = (void *)(long)skb->data;
	*end = (void *)(long)skb->data_end;
	return *data + need <= *end;
}

/*
 * Like readable(), for a frame whose IP packet starts at `offset`: its TCP header too where the frame is
 * long enough for one.
 */
static __always_inline bool readable_ip(struct __sk_buff *skb, __u32 offset, void **data, void **end)
{
	return readable(skb, offset + FL_IP_LEN + FL_TCP_LEN, data, end) ||
	       readable(skb, offset + FL_IP_LEN + FL_L4_LEN, data, end);
}

#define FL_HEADERS_LEN 144 /* outer with IPv4 options or some of IPv6's extensions, and inner with TCP */

/* Make readable what there is of the headers; the Ethernet and an IP header at least. */
static __always_inline bool readable_part(struct __sk_buff *skb, void **data, void **end)
{
	*data = (void *)(long)skb->data;
	*end = (void *)(long)skb->data_end;
	if (*data + FL_HEADERS_LEN > *end && *end - *data < skb->len &&
	    bpf_skb_pull_data(skb, skb->len < FL_HEADERS_LEN ? skb->len : FL_HEADERS_LEN))
		return false;
	*data = (void *)(long)skb->data;
	*end = (void *)(long)skb->data_end;
	return *data + FL_ETH_LEN + FL_IP_LEN <= *end;
}

/* Length of the largest packet that this skb becomes on the wire: a super-packet is cut there. */
static __always_inline __u32 segment_len(struct __sk_buff *skb, const struct fl_packet *p)
{
	return skb->gso_size ? p->headers + skb->gso_size : p->len;
}

#endif
