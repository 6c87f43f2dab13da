/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What is IPv4's own: addresses, headers, ARP. ipv6.h has the same names. */
#ifndef FLANNEL_IPV4_H
#define FLANNEL_IPV4_H

#include <linux/ip.h>
#include <linux/udp.h>

#include "packet.h"

#define FL_ETHERTYPE bpf_htons(ETH_P_IP)
#define FL_AF 2 /* AF_INET */
#define FL_IP_LEN 20
#define FL_IP_MAX_LEN 60
#define FL_ROOM_L3 BPF_F_ADJ_ROOM_ENCAP_L3_IPV4

#define FL_ICMP IPPROTO_ICMP
#define FL_ICMP_REQUEST 8
#define FL_ICMP_REPLY 0
#define FL_UDP_CHECKSUM 0 /* a datagram needs none */

#define FL_IP_MF bpf_htons(0x2000)
#define FL_IP_OFFSET bpf_htons(0x1fff)
#define FL_IP_MF_OR_OFFSET bpf_htons(0x3fff)

typedef struct iphdr ip_header FL_HALVES;

/* An address of fl_cfg as a number in network byte order. */
#define FL_CFG_ADDR(field) (*(const volatile __u32 *)fl_cfg.field)

static __always_inline ip_addr load_addr(const void *from)
{
	return *(const word32 *)from;
}

static __always_inline bool same_addr(ip_addr a, ip_addr b)
{
	return a == b;
}

/* The node's own address. */
static __always_inline ip_addr own_ip(void)
{
	return FL_CFG_ADDR(public_ip);
}

static __always_inline bool in_own_subnet(ip_addr addr)
{
	return (addr & FL_CFG_ADDR(subnet_mask)) == FL_CFG_ADDR(subnet);
}

static __always_inline bool in_network(ip_addr addr)
{
	return (addr & FL_CFG_ADDR(network_mask)) == FL_CFG_ADDR(network);
}

/* The first `len` bits of an address; len > 0. */
static __always_inline ip_addr masked(ip_addr addr, __u32 len)
{
	return addr & bpf_htonl(~0U << (32 - len));
}

static __always_inline bool is_multicast(ip_addr addr)
{
	return (addr & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000) || addr == 0xffffffff;
}

/* Is an ICMP type of the link, not of the network? */
static __always_inline bool is_link_icmp(__u8 type)
{
	return false;
}

static __always_inline ip_addr source_of(const ip_header *ip)
{
	return ip->saddr;
}

static __always_inline ip_addr target_of(const ip_header *ip)
{
	return ip->daddr;
}

/* Of the whole packet, host byte order. */
static __always_inline __u32 length_of(const ip_header *ip)
{
	return bpf_ntohs(ip->tot_len);
}

static __always_inline __u8 ttl_of(const ip_header *ip)
{
	return ip->ttl;
}

static __always_inline __u8 tos_of(const ip_header *ip)
{
	return ip->tos;
}

/* What tells packets of one flow apart; wire order. */
static __always_inline __u16 id_of(const ip_header *ip)
{
	return ip->id;
}

/* Ones' complement sum of an IPv4 header without options, folded: 0xffff when its checksum is right. */
static __always_inline __u16 sum_ipv4(const ip_header *ip)
{
	const word32 *word = (const word32 *)ip;

	return fold((__u64)word[0] + word[1] + word[2] + word[3] + word[4]);
}

/* RFC 1624 for one 16-bit word of the header. */
static __always_inline void replace_word(ip_header *ip, __u16 old, __u16 new)
{
	__u32 sum = (__u16)~ip->check + (__u16)~old + (__u32) new;

	sum = (sum & 0xffff) + (sum >> 16);
	ip->check = ~(__u16)(sum + (sum >> 16));
}

static __always_inline void decrement_ttl(ip_header *ip, __u8 by)
{
	__u16 *word = (__u16 *)&ip->ttl;
	__u16 old = *word;

	ip->ttl -= by;
	replace_word(ip, old, *word);
}

static __always_inline void set_tos(ip_header *ip, __u8 tos)
{
	__u16 *word = (__u16 *)ip;
	__u16 old = *word;

	ip->tos = tos;
	replace_word(ip, old, *word);
}

/* What the kernel makes of a forwarded packet's TOS: rt_tos2priority(). Qdiscs and VLANs sort by it. */
static __always_inline __u32 priority_of(__u8 tos)
{
	return 0x4620 >> (tos >> 1 & 12) & 15;
}

/* IPv4 without options, whole, right checksum, TTL to spare. Arguments as of parse_packet(). */
static __always_inline enum fl_reason parse_ip(const ip_header *ip, __u32 room, bool padded, __u8 hop_cost,
					       struct fl_packet *p)
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
	if (is_multicast(ip->daddr))
		return FL_NOT_UNICAST;
	if (ip->frag_off & FL_IP_MF_OR_OFFSET)
		return FL_FRAGMENT;
	if (ip->ttl <= hop_cost)
		return FL_TTL;
	p->src = ip->saddr;
	p->dst = ip->daddr;
	p->proto = ip->protocol;
	p->tos = ip->tos;
	return FL_GO_ON;
}

/* Is it worth a look for UDP? */
static __always_inline bool may_be_udp(const ip_header *ip)
{
	return ip->protocol == IPPROTO_UDP;
}

/*
 * The UDP header that the kernel would find in a packet, once whole. FL_GO_ON: *udp is it, though perhaps not
 * readable; FL_FRAGMENT: the packet is a later fragment; FL_TRUNCATED: it cannot be told. *first: the first of
 * several fragments.
 */
static __always_inline enum fl_reason find_udp(const ip_header *ip, const void *end, const struct udphdr **udp,
					       bool *first)
{
	if (ip->protocol != IPPROTO_UDP)
		return FL_PROTOCOL;
	if (ip->frag_off & FL_IP_OFFSET)
		return FL_FRAGMENT;
	*udp = (const void *)ip + ip->ihl * 4;
	*first = ip->frag_off & FL_IP_MF;
	return FL_GO_ON;
}

/* IPv4 over Ethernet ARP, RFC 826. */
struct fl_arp {
	__u16 hardware;
	__u16 protocol;
	__u8 hardware_len;
	__u8 protocol_len;
	__u16 operation;
	__u8 sender_mac[6];
	__u8 sender_ip[4];
	__u8 target_mac[6];
	__u8 target_ip[4];
};

/* Does a frame say that its sender has an address? FL_ETH_LEN + FL_IP_LEN + FL_L4_LEN bytes are readable. */
static __always_inline bool claims_address(const struct ethhdr *eth, const void *end, const void **addr,
					   const void **mac)
{
	const struct fl_arp *arp = (const void *)(eth + 1);

	if (eth->h_proto != bpf_htons(ETH_P_ARP) || arp->hardware != bpf_htons(1) ||
	    arp->protocol != bpf_htons(ETH_P_IP))
		return false;
	*addr = arp->sender_ip;
	*mac = arp->sender_mac;
	return true;
}

/* Outer headers as they start after the Ethernet header. */
struct fl_outer {
	ip_header ip;
	struct udphdr udp;
};

/* Is a UDP packet for us well-formed outside? The kernel reassembles, and handles outer options. */
static __always_inline enum fl_reason match_outer(const struct fl_outer *outer, __u32 frame_len)
{
	__u32 len = bpf_ntohs(outer->ip.tot_len);

	if (outer->ip.version != 4 || outer->ip.ihl != 5)
		return FL_OUTER;
	if (outer->udp.dest != bpf_htons(fl_cfg.port))
		return FL_NOT_OVERLAY;
	if (outer->ip.frag_off & FL_IP_MF_OR_OFFSET || len != frame_len - FL_ETH_LEN ||
	    bpf_ntohs(outer->udp.len) != len - FL_IP_LEN || sum_ipv4(&outer->ip) != 0xffff)
		return FL_OUTER;
	return FL_GO_ON;
}

/* Did the kernel write this outer header as write_outer() would have? */
static __always_inline bool is_own_outer(const struct fl_outer *outer, ip_addr peer, __u8 tos)
{
	return outer->ip.ihl == 5 && outer->ip.protocol == IPPROTO_UDP &&
	       outer->ip.saddr == FL_CFG_ADDR(public_ip) && outer->ip.daddr == peer &&
	       outer->udp.dest == bpf_htons(fl_cfg.port) && outer->ip.tos == tos && outer->ip.ttl == fl_cfg.ttl;
}

/*
 * Outer header of a packet of `len` bytes (IPv4 total length). UDP checksum 0: what is inside may still be
 * waiting for its own checksum, and receivers accept 0 on IPv4.
 */
static __always_inline void write_outer(struct fl_outer *outer, __u16 len, __u8 tos, __u16 frag_off, __u16 id,
					ip_addr peer_ip, __u16 sport)
{
	outer->ip = (ip_header){
		.version = 4,
		.ihl = 5,
		.tos = tos,
		.tot_len = bpf_htons(len),
		.id = id,
		.frag_off = frag_off,
		.ttl = fl_cfg.ttl,
		.protocol = IPPROTO_UDP,
		.saddr = FL_CFG_ADDR(public_ip),
		.daddr = peer_ip,
	};
	outer->ip.check = ~sum_ipv4(&outer->ip);
	outer->udp = (struct udphdr){
		.source = bpf_htons(sport),
		.dest = bpf_htons(fl_cfg.port),
		.len = bpf_htons(len - FL_IP_LEN),
	};
}

/* Must the checksum of an outer header be one that cannot be told? None is needed. */
static __always_inline enum fl_reason can_seal(struct __sk_buff *skb, const struct fl_packet *p)
{
	return FL_GO_ON;
}

/*
 * Write the outer checksum, where it is asked for and can be told: as in ipv6.h, and an IPv4 header sums up to
 * nothing. A datagram without a checksum of its own leaves the outer one 0, and so do segments of different
 * length and what was not parsed. Two packets of one flow may so differ in it, which no receiver minds.
 */
static __always_inline void seal(struct fl_outer *outer, const ip_header *ip, const void *end,
				 const struct fl_packet *p, __u32 segment)
{
	const __u16 *tunnel = (const __u16 *)(outer + 1);
	const word32 *addr = (const word32 *)&ip->saddr, *outer_addr = (const word32 *)&outer->ip.saddr;
	const __u16 *udp_check = (const __u16 *)((const void *)(ip + 1) + 6);
	__u64 sum = 2 * bpf_htons(segment + ((const void *)ip - (const void *)&outer->udp));
	__u16 check;

	if (!fl_cfg.outer_checksum || !p->headers || (__u32)(p->len - p->headers) % (segment - p->headers ?: 1))
		return;
	if (ip->protocol == IPPROTO_UDP && ((const void *)(udp_check + 1) > end || !*udp_check))
		return;
	sum += (__u64)outer_addr[0] + outer_addr[1] + bpf_htons(IPPROTO_UDP);
	sum += outer->udp.source + outer->udp.dest;
	for (int i = 0; i < 11; i++) /* VXLAN and Ethernet */
		sum += tunnel[i];
	if (ip->protocol != IPPROTO_ICMP) {
		__u64 pseudo = (__u64)addr[0] + addr[1] + bpf_htons(ip->protocol) + bpf_htons(segment - FL_IP_LEN);

		sum += (__u16)~fold(pseudo);
	}
	check = ~fold(sum);
	outer->udp.check = check ? check : 0xffff;
}

static __always_inline void set_next_hop(struct bpf_redir_neigh *next, ip_addr addr)
{
	next->ipv4_nh = addr;
}

static __always_inline void set_route(struct bpf_fib_lookup *route, ip_addr from, ip_addr to)
{
	route->ipv4_src = from;
	route->ipv4_dst = to;
}

#endif
