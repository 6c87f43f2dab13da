/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What vxlan and udp share: the outer IPv4 and UDP header, and taking it off. */
#ifndef FLANNEL_TUNNEL_H
#define FLANNEL_TUNNEL_H

#include <linux/udp.h>

#include "parse.h"

#define FL_UDP_LEN 8
#define FL_OUTER_LEN (FL_ETH_LEN + FL_IP_LEN + FL_UDP_LEN)

#define FL_ECN_MASK 3
#define FL_ECN_ECT_1 1
#define FL_ECN_ECT_0 2
#define FL_ECN_CE 3

/* Outer headers as they start after the Ethernet header. */
struct fl_outer {
	struct iphdr ip;
	struct udphdr udp;
};

struct fl_vxlan {
	__u32 flags;
	__u32 vni;
};

#define FL_VXLAN_LEN 8
#define FL_VXLAN_OVERHEAD (FL_IP_LEN + FL_UDP_LEN + FL_VXLAN_LEN + FL_ETH_LEN)
#define FL_VXLAN_INNER (FL_ETH_LEN + FL_VXLAN_OVERHEAD) /* offset of the inner IPv4 packet */
#define FL_UDP_OVERHEAD (FL_IP_LEN + FL_UDP_LEN)
#define FL_UDP_INNER FL_OUTER_LEN

static __always_inline __u32 vxlan_vni(void)
{
	return bpf_htonl(fl_cfg.vni << 8);
}

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

/*
 * Outer header of a packet of `len` bytes (IPv4 total length). UDP checksum 0: what is inside may still be
 * waiting for its own checksum, and receivers accept 0 on IPv4.
 */
static __always_inline void write_outer(struct fl_outer *outer, __u16 len, __u8 tos, __u16 frag_off, __u16 id,
					__u32 peer_ip, __u16 sport)
{
	outer->ip = (struct iphdr){
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

/* Insert `len` bytes behind the Ethernet header; on error the packet is untouched. */
static __always_inline enum fl_reason make_room(struct __sk_buff *skb, __u32 len, __u64 flags)
{
	flags |= BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP;
	if (fl_cfg.caps & FL_CAP_CSUM_LEVEL)
		flags |= BPF_F_ADJ_ROOM_NO_CSUM_RESET;
	if (!bpf_skb_adjust_room(skb, len, BPF_ADJ_ROOM_MAC, flags))
		return FL_GO_ON;
	return skb->gso_size ? FL_GSO : FL_HELPER;
}

/* BPF_F_ADJ_ROOM_DECAP_L4_UDP: newer than Linux 6.18. */
#define FL_ROOM_DECAP_L4_UDP (1ULL << 10)

/*
 * An aggregate that GRO built, or that came whole over a veth, keeps skb->encapsulation and the tunnel bit of
 * its GSO type where the kernel cannot clear them. TCP does not mind: a socket takes it whole, and if the pod
 * forwards it, the inner header offsets still fit, because the inner packet has not moved. A UDP socket cuts
 * it up, and would take the inner packet for a tunnel's.
 */
static __always_inline bool keeps_tunnel_state(struct __sk_buff *skb, const struct fl_packet *p)
{
	return skb->gso_size && p->proto != IPPROTO_TCP && !(fl_cfg.caps & FL_CAP_DECAP_L4_UDP);
}

/* Take `len` bytes of tunnel headers off; on error the packet is untouched. */
static __always_inline enum fl_reason take_off(struct __sk_buff *skb, __s32 len)
{
	__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO;

	if (fl_cfg.caps & FL_CAP_CSUM_LEVEL)
		flags |= BPF_F_ADJ_ROOM_NO_CSUM_RESET;
	if (skb->gso_size && fl_cfg.caps & FL_CAP_DECAP_L4_UDP)
		flags |= FL_ROOM_DECAP_L4_UDP;
	if (bpf_skb_adjust_room(skb, -len, BPF_ADJ_ROOM_MAC, flags))
		return skb->gso_size ? FL_GSO : FL_HELPER;
	/* what was verified so far was the outer checksum */
	if (fl_cfg.caps & FL_CAP_CSUM_LEVEL)
		bpf_csum_level(skb, BPF_CSUM_LEVEL_DEC);
	return FL_GO_ON;
}

/* The inner IPv4 header, once take_off() has brought it behind the Ethernet header. */
static __always_inline bool inner_ipv4(struct __sk_buff *skb, struct iphdr **ip)
{
	*ip = (void *)(long)skb->data + FL_ETH_LEN;
	return (void *)(*ip + 1) <= (void *)(long)skb->data_end;
}

#endif
