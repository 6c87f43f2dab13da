/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * From bytes to struct fl_packet. A helper returns FL_GO_ON to go on, any other reason to stop there.
 * Callers prove once per layer that a layer's bytes are readable.
 */
#ifndef FLANNEL_PARSE_H
#define FLANNEL_PARSE_H

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <stdbool.h>
#include <stddef.h>

#include <bpf/bpf_endian.h>

#include "maps.h"

#define FL_ETH_LEN 14
#define FL_IP_LEN 20
#define FL_L4_LEN 8 /* what UDP, ICMP echo and the ports of TCP need */
#define FL_TCP_LEN 20

#define FL_IP_MF_OR_OFFSET bpf_htons(0x3fff)

enum fl_tcp_flag {
	FL_TCP_FIN = 1 << 0,
	FL_TCP_SYN = 1 << 1,
	FL_TCP_RST = 1 << 2,
	FL_TCP_ACK = 1 << 4,
};

/* Takes the place of the answering side's port in an ICMP echo: who asks and who answers are two flows. */
#define FL_ICMP_ECHO bpf_htons(8)

/* One IPv4 packet between two pods. Addresses and ports in network byte order. */
struct fl_packet {
	__u32 src;
	__u32 dst;
	__u16 sport; /* ICMP echo: its id is the asking side's port, FL_ICMP_ECHO the other's */
	__u16 dport;
	__u16 len; /* IPv4 total length, host byte order */
	__u8 proto;
	__u8 tos;
	__u8 tcp_flags;
	__u8 no_flow; /* 1: ICMP that is no echo */
	__u8 headers; /* bytes of IPv4 and L4 header: what each segment of a super-packet repeats */
};

/* An address of fl_cfg as a number in network byte order. */
#define FL_CFG_ADDR(field) (*(const volatile __u32 *)fl_cfg.field)

static __always_inline bool in_own_subnet(__u32 addr)
{
	return (addr & FL_CFG_ADDR(subnet_mask)) == FL_CFG_ADDR(subnet);
}

static __always_inline bool in_network(__u32 addr)
{
	return (addr & FL_CFG_ADDR(network_mask)) == FL_CFG_ADDR(network);
}

/* What one pass through this node takes from a packet's TTL: flannel's udp relay counts as a hop of its own. */
static __always_inline __u8 ttl_cost(__u8 mode)
{
	return mode == FL_MODE_UDP ? 2 : 1;
}

/* Ones' complement sum of an IPv4 header without options, folded: 0xffff when its checksum is right. */
static __always_inline __u16 sum_ipv4(const struct iphdr *ip)
{
	const __u32 *word = (const __u32 *)ip;
	__u64 sum = (__u64)word[0] + word[1] + word[2] + word[3] + word[4];

	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/* RFC 1624 for one 16-bit word of the header. */
static __always_inline void replace_word(struct iphdr *ip, __u16 old, __u16 new)
{
	__u32 sum = (__u16)~ip->check + (__u16)~old + (__u32) new;

	sum = (sum & 0xffff) + (sum >> 16);
	ip->check = ~(__u16)(sum + (sum >> 16));
}

static __always_inline void decrement_ttl(struct iphdr *ip, __u8 by)
{
	__u16 *word = (__u16 *)&ip->ttl;
	__u16 old = *word;

	ip->ttl -= by;
	replace_word(ip, old, *word);
}

static __always_inline void set_tos(struct iphdr *ip, __u8 tos)
{
	__u16 *word = (__u16 *)ip;
	__u16 old = *word;

	ip->tos = tos;
	replace_word(ip, old, *word);
}

static __always_inline bool is_multicast_v4(__u32 addr)
{
	return (addr & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000) || addr == 0xffffffff;
}

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
		break;
	case IPPROTO_ICMP:
		p->no_flow = (l4[0] != 8 && l4[0] != 0) || l4[1]; /* echo and echo reply, code 0 */
		p->sport = l4[0] ? *(const __u16 *)(l4 + 4) : FL_ICMP_ECHO;
		p->dport = l4[0] ? FL_ICMP_ECHO : *(const __u16 *)(l4 + 4);
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
 * A packet that may be carried: IPv4 without options, whole, right checksum, TTL to spare, known L4.
 * FL_IP_LEN + FL_L4_LEN bytes at `ip` are readable; `room` is what the frame holds from `ip` on.
 * `padded` accepts link-layer padding behind the packet.
 */
static __always_inline enum fl_reason parse_ipv4(const struct iphdr *ip, const void *end, __u32 room, bool padded,
						 __u8 hop_cost, struct fl_packet *p)
{
	if (ip->version != 4 || ip->ihl < 5)
		return FL_BAD_HEADER;
	if (ip->ihl > 5)
		return FL_IP_OPTIONS;
	p->len = bpf_ntohs(ip->tot_len);
	if (p->len > room || (p->len < room && !padded))
		return FL_BAD_HEADER;
	if (sum_ipv4(ip) != 0xffff)
		return FL_BAD_HEADER;
	if (is_multicast_v4(ip->daddr))
		return FL_NOT_UNICAST;
	if (ip->frag_off & FL_IP_MF_OR_OFFSET)
		return FL_FRAGMENT;
	if (ip->ttl <= hop_cost)
		return FL_TTL;
	p->src = ip->saddr;
	p->dst = ip->daddr;
	p->proto = ip->protocol;
	p->tos = ip->tos;
	return parse_l4((const __u8 *)(ip + 1), end, p);
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
 * Like readable(), for a frame whose IPv4 packet starts at `offset`: its TCP header too where the frame is
 * long enough for one.
 */
static __always_inline bool readable_ipv4(struct __sk_buff *skb, __u32 offset, void **data, void **end)
{
	return readable(skb, offset + FL_IP_LEN + FL_TCP_LEN, data, end) ||
	       readable(skb, offset + FL_IP_LEN + FL_L4_LEN, data, end);
}

#define FL_HEADERS_LEN 144 /* outer with IPv4 options, and inner with TCP */

/* Make readable what there is of the headers; the Ethernet and an IPv4 header at least. */
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

/* Length of the largest IPv4 packet that this skb becomes on the wire: a super-packet is cut there. */
static __always_inline __u32 segment_len(struct __sk_buff *skb, const struct fl_packet *p)
{
	return skb->gso_size ? p->headers + skb->gso_size : p->len;
}

#endif
