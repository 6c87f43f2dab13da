/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What is IPv6's own: addresses, headers, neighbour discovery. ipv4.h has the same names. */
#ifndef FLANNEL_IPV6_H
#define FLANNEL_IPV6_H

#include <linux/ipv6.h>
#include <linux/udp.h>

#include "packet.h"

#define FL_ETHERTYPE bpf_htons(ETH_P_IPV6)
#define FL_AF 10 /* AF_INET6 */
#define FL_IP_LEN 40
#define FL_IP_MAX_LEN FL_IP_LEN
#define FL_ROOM_L3 BPF_F_ADJ_ROOM_ENCAP_L3_IPV6

#define FL_ICMP IPPROTO_ICMPV6
#define FL_ICMP_REQUEST 128
#define FL_ICMP_REPLY 129
#define FL_UDP_CHECKSUM 1 /* a datagram must have one (RFC 8200) */

typedef struct ipv6hdr ip_header FL_HALVES;

static __always_inline ip_addr load_addr(const void *from)
{
	const word64 *word = from;

	return (ip_addr){ word[0], word[1] };
}

static __always_inline ip_addr load_cfg(const volatile void *from)
{
	const volatile __u64 *word = from;

	return (ip_addr){ word[0], word[1] };
}

/* An address of fl_cfg. */
#define FL_CFG_ADDR(field) load_cfg(fl_cfg.field)

static __always_inline bool same_addr(ip_addr a, ip_addr b)
{
	return a.high == b.high && a.low == b.low;
}

/* The node's own address. */
static __always_inline ip_addr own_ip(void)
{
	return FL_CFG_ADDR(public_ip);
}

static __always_inline bool is_within(ip_addr addr, ip_addr mask, ip_addr first)
{
	return (addr.high & mask.high) == first.high && (addr.low & mask.low) == first.low;
}

static __always_inline bool in_own_subnet(ip_addr addr)
{
	return is_within(addr, FL_CFG_ADDR(subnet_mask), FL_CFG_ADDR(subnet));
}

static __always_inline bool in_network(ip_addr addr)
{
	return is_within(addr, FL_CFG_ADDR(network_mask), FL_CFG_ADDR(network));
}

/* The first `len` bits of an address; len > 0. */
static __always_inline ip_addr masked(ip_addr addr, __u32 len)
{
	if (len < 64)
		addr.high &= bpf_cpu_to_be64(~0ULL << (64 - len));
	if (len <= 64)
		addr.low = 0;
	else
		addr.low &= bpf_cpu_to_be64(~0ULL << (128 - len));
	return addr;
}

/* Multicast, the link's own, or no address at all. */
static __always_inline bool is_multicast(ip_addr addr)
{
	const __u64 first = bpf_be64_to_cpu(addr.high);

	return first >> 56 == 0xff || first >> 54 == 0xfe80 >> 6 || !(addr.high | addr.low);
}

/* Is an ICMP type of the link, not of the network? Multicast listeners, neighbour discovery and what came later.
 */
static __always_inline bool is_link_icmp(__u8 type)
{
	return type > FL_ICMP_REPLY;
}

static __always_inline ip_addr source_of(const ip_header *ip)
{
	return load_addr(&ip->saddr);
}

static __always_inline ip_addr target_of(const ip_header *ip)
{
	return load_addr(&ip->daddr);
}

/* Of the whole packet, host byte order. */
static __always_inline __u32 length_of(const ip_header *ip)
{
	return FL_IP_LEN + bpf_ntohs(ip->payload_len);
}

static __always_inline __u8 ttl_of(const ip_header *ip)
{
	return ip->hop_limit;
}

/* The traffic class. */
static __always_inline __u8 tos_of(const ip_header *ip)
{
	return bpf_ntohs(*(const __u16 *)ip) >> 4;
}

static __always_inline void set_tos(ip_header *ip, __u8 tos)
{
	__u16 *word = (__u16 *)ip;

	*word = (*word & bpf_htons(0xf00f)) | bpf_htons(tos << 4);
}

/* What tells packets of one flow apart, as far as anything does: 16 bits of the flow label. */
static __always_inline __u16 id_of(const ip_header *ip)
{
	return *((const __u16 *)ip + 1);
}

static __always_inline void decrement_ttl(ip_header *ip, __u8 by)
{
	ip->hop_limit -= by;
}

/* ip6_forward() leaves skb->priority alone. */
static __always_inline __u32 priority_of(__u8 tos)
{
	return 0;
}

static __always_inline bool is_extension(__u8 next)
{
	return next == IPPROTO_HOPOPTS || next == IPPROTO_ROUTING || next == IPPROTO_DSTOPTS ||
	       next == IPPROTO_FRAGMENT;
}

/* IPv6 without extension headers, whole, hops to spare. Arguments as of parse_packet(). */
static __always_inline enum fl_reason parse_ip(const ip_header *ip, __u32 room, bool padded, __u8 hop_cost,
					       struct fl_packet *p)
{
	__u32 len = length_of(ip);

	if (ip->version != 6)
		return FL_BAD_HEADER;
	if (ip->nexthdr == IPPROTO_FRAGMENT)
		return FL_FRAGMENT;
	if (is_extension(ip->nexthdr))
		return FL_IP_OPTIONS;
	if (len > room || (len < room && !padded))
		return FL_BAD_HEADER;
	if (len > 0xffff)
		return FL_TOO_BIG;
	if (is_multicast(target_of(ip)))
		return FL_NOT_UNICAST;
	if (ip->hop_limit <= hop_cost)
		return FL_TTL;
	p->len = len;
	p->src = source_of(ip);
	p->dst = target_of(ip);
	p->proto = ip->nexthdr;
	p->tos = tos_of(ip);
	return FL_GO_ON;
}

/* Is it worth a look for UDP? */
static __always_inline bool may_be_udp(const ip_header *ip)
{
	return ip->nexthdr == IPPROTO_UDP || is_extension(ip->nexthdr);
}

#define FL_EXTENSIONS 6 /* read of one packet; the kernel reads any number */

/*
 * The UDP header that the kernel would find in a packet, once whole. FL_GO_ON: *udp is it, though perhaps not
 * readable; FL_FRAGMENT: the packet is a later fragment; FL_TRUNCATED: it cannot be told. *first: the first of
 * several fragments.
 */
static __always_inline enum fl_reason find_udp(const ip_header *ip, const void *end, const struct udphdr **udp,
					       bool *first)
{
	const __u8 *at = (const void *)(ip + 1);
	__u8 next = ip->nexthdr;

	*first = false;
#pragma unroll
	for (int i = 0; i <= FL_EXTENSIONS; i++) {
		if (next == IPPROTO_UDP) {
			*udp = (const void *)at;
			return FL_GO_ON;
		}
		if (!is_extension(next))
			return FL_PROTOCOL;
		if ((const void *)(at + 8) > end)
			return FL_TRUNCATED;
		if (next == IPPROTO_FRAGMENT) {
			const __u16 offset = *(const __u16 *)(at + 2);

			if (offset & bpf_htons(0xfff8))
				return FL_FRAGMENT;
			*first |= offset & bpf_htons(1);
			next = at[0];
			at += 8;
		} else {
			next = at[0];
			at += (at[1] + 1) * 8;
		}
	}
	return FL_TRUNCATED;
}

/* Neighbour solicitation and advertisement, RFC 4861. */
struct fl_neighbour {
	__u8 type;
	__u8 code;
	__u16 check;
	__u32 flags;
	__u8 target[16];
};

#define FL_SOLICITATION 135
#define FL_ADVERTISEMENT 136

/* Does a frame say that its sender has an address? FL_ETH_LEN + FL_IP_LEN + FL_L4_LEN bytes are readable. */
static __always_inline bool claims_address(const struct ethhdr *eth, const void *end, const void **addr,
					   const void **mac)
{
	const ip_header *ip = (const void *)(eth + 1);
	const struct fl_neighbour *neighbour = (const void *)(ip + 1);
	ip_addr source;

	if (eth->h_proto != FL_ETHERTYPE || ip->nexthdr != FL_ICMP || ip->hop_limit != 255 ||
	    (neighbour->type != FL_SOLICITATION && neighbour->type != FL_ADVERTISEMENT) ||
	    (const void *)(neighbour + 1) > end)
		return false;
	source = source_of(ip);
	*mac = eth->h_source;
	/* who asks whether an address is taken has it next */
	*addr = neighbour->type == FL_ADVERTISEMENT || !(source.high | source.low)
			? (const void *)neighbour->target
			: (const void *)&ip->saddr;
	return true;
}

/* Outer headers as they start after the Ethernet header. */
struct fl_outer {
	ip_header ip;
	struct udphdr udp;
};

/* Is a UDP packet for us well-formed outside? The kernel reassembles, and handles extension headers. */
static __always_inline enum fl_reason match_outer(const struct fl_outer *outer, __u32 frame_len)
{
	if (outer->ip.version != 6 || outer->ip.nexthdr != IPPROTO_UDP)
		return FL_OUTER;
	if (outer->udp.dest != bpf_htons(fl_cfg.port))
		return FL_NOT_OVERLAY;
	if (length_of(&outer->ip) != frame_len - FL_ETH_LEN || outer->udp.len != outer->ip.payload_len ||
	    !outer->udp.check)
		return FL_OUTER;
	return FL_GO_ON;
}

/* Did the kernel write this outer header as write_outer() would have? */
static __always_inline bool is_own_outer(const struct fl_outer *outer, ip_addr peer, __u8 tos)
{
	return outer->ip.nexthdr == IPPROTO_UDP && same_addr(source_of(&outer->ip), own_ip()) &&
	       same_addr(target_of(&outer->ip), peer) && outer->udp.dest == bpf_htons(fl_cfg.port) &&
	       tos_of(&outer->ip) == tos && outer->ip.hop_limit == fl_cfg.ttl;
}

/* Outer header of a packet of `len` bytes (with this header); seal() does the checksum. */
static __always_inline void write_outer(struct fl_outer *outer, __u16 len, __u8 tos, __u16 frag_off, __u16 id,
					ip_addr peer_ip, __u16 sport)
{
	const ip_addr own = own_ip();

	*(word32 *)&outer->ip = bpf_htonl(6 << 28 | tos << 20);
	outer->ip.payload_len = bpf_htons(len - FL_IP_LEN);
	outer->ip.nexthdr = IPPROTO_UDP;
	outer->ip.hop_limit = fl_cfg.ttl;
	__builtin_memcpy(&outer->ip.saddr, &own, sizeof(own));
	__builtin_memcpy(&outer->ip.daddr, &peer_ip, sizeof(peer_ip));
	outer->udp = (struct udphdr){
		.source = bpf_htons(sport),
		.dest = bpf_htons(fl_cfg.port),
		.len = bpf_htons(len - FL_IP_LEN),
	};
}

/* Can the checksum of an outer header be told? Of a super-packet, where all segments are of one length. */
static __always_inline enum fl_reason can_seal(struct __sk_buff *skb, const struct fl_packet *p)
{
	return skb->gso_size && (__u32)(p->len - p->headers) % skb->gso_size ? FL_GSO : FL_GO_ON;
}

/*
 * Write the outer checksum of a packet, or of each segment of `segment` bytes, from headers alone: what is behind
 * the inner header sums up to the complement of its pseudo header, once its own checksum is right, and may still
 * be waiting for that (the kernel's local checksum offload). So addresses and length of the inner header cancel.
 */
static __always_inline void seal(struct fl_outer *outer, const ip_header *ip, const void *end,
				 const struct fl_packet *p, __u32 segment)
{
	const word64 *addr = (const word64 *)&outer->ip.saddr;
	const __u16 *tunnel = (const __u16 *)(outer + 1), *inner = (const __u16 *)ip;
	__u64 sum = 2 * bpf_htons(segment + ((const void *)ip - (const void *)&outer->udp));
	__u16 check;

	for (int i = 0; i < 4; i++)
		sum += (addr[i] >> 32) + (addr[i] & 0xffffffff);
	sum += bpf_htons(IPPROTO_UDP) + outer->udp.source + outer->udp.dest;
	for (int i = 0; i < 11; i++) /* VXLAN and Ethernet */
		sum += tunnel[i];
	sum += inner[0] + inner[1] + inner[3] + (__u16)~bpf_htons(ip->nexthdr);
	check = ~fold(sum);
	outer->udp.check = check ? check : 0xffff;
}

static __always_inline void set_next_hop(struct bpf_redir_neigh *next, ip_addr addr)
{
	__builtin_memcpy(next->ipv6_nh, &addr, sizeof(addr));
}

static __always_inline void set_route(struct bpf_fib_lookup *route, ip_addr from, ip_addr to)
{
	__builtin_memcpy(route->ipv6_src, &from, sizeof(from));
	__builtin_memcpy(route->ipv6_dst, &to, sizeof(to));
}

#endif
