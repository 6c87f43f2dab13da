/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What vxlan and udp share: the outer IPv4 and UDP header, and taking it off. */
#ifndef FLANNEL_TUNNEL_H
#define FLANNEL_TUNNEL_H

#include "parse.h"

#define FL_UDP_LEN 8
#define FL_OUTER_LEN (FL_ETH_LEN + FL_IP_LEN + FL_UDP_LEN)

#define FL_ECN_MASK 3
#define FL_ECN_ECT_1 1
#define FL_ECN_ECT_0 2
#define FL_ECN_CE 3

struct fl_vxlan {
	__u32 flags;
	__u32 vni;
};

#define FL_VXLAN_LEN 8
#define FL_VXLAN_OVERHEAD (FL_IP_LEN + FL_UDP_LEN + FL_VXLAN_LEN + FL_ETH_LEN)
#define FL_VXLAN_INNER (FL_ETH_LEN + FL_VXLAN_OVERHEAD) /* offset of the inner IP packet */
#define FL_UDP_OVERHEAD (FL_IP_LEN + FL_UDP_LEN)
#define FL_UDP_INNER FL_OUTER_LEN
#define FL_UDP_PROTO (FL_UDP_INNER + 9) /* what the inner IPv4 packet carries */

static __always_inline __u32 vxlan_vni(void)
{
	return bpf_htonl(fl_cfg.vni << 8);
}

/* Insert `len` bytes behind the Ethernet header; on error the packet is untouched. */
static __always_inline enum fl_reason make_room(struct __sk_buff *skb, __u32 len, __u64 flags)
{
	flags |= BPF_F_ADJ_ROOM_FIXED_GSO | FL_ROOM_L3 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP;
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
 * it up, and would take the inner packet for a tunnel's. Where the kernel can clear them, it drops such a packet
 * on its way through a veth's queue: it looks for the inner header in front of the packet.
 */
static __always_inline bool keeps_tunnel_state(struct __sk_buff *skb, const struct fl_packet *p)
{
	__u32 needed = FL_CAP_DECAP_L4_UDP | FL_CAP_REDIRECT_PEER;

	return skb->gso_size && p->proto != IPPROTO_TCP && (fl_cfg.caps & needed) != needed;
}

/*
 * Take `len` bytes of tunnel headers off; on error the packet is untouched. `proto` is of what is inside.
 *
 * TCP's aggregates keep the tunnel state on every kernel. Without it qdisc_pkt_len_segs_init() of Linux 7 looks
 * for the TCP header where the outer UDP header was, in front of the packet, and the kernel ends in a panic.
 */
static __always_inline enum fl_reason take_off(struct __sk_buff *skb, __s32 len, __u8 proto)
{
	__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO;

	if (fl_cfg.caps & FL_CAP_CSUM_LEVEL)
		flags |= BPF_F_ADJ_ROOM_NO_CSUM_RESET;
	if (skb->gso_size && proto != IPPROTO_TCP && fl_cfg.caps & FL_CAP_DECAP_L4_UDP)
		flags |= FL_ROOM_DECAP_L4_UDP;
	if (bpf_skb_adjust_room(skb, -len, BPF_ADJ_ROOM_MAC, flags))
		return skb->gso_size ? FL_GSO : FL_HELPER;
	/* what was verified so far was the outer checksum */
	if (fl_cfg.caps & FL_CAP_CSUM_LEVEL)
		bpf_csum_level(skb, BPF_CSUM_LEVEL_DEC);
	return FL_GO_ON;
}

/* The inner IPv4 header, once take_off() has brought it behind the Ethernet header. */
static __always_inline bool inner_ip(struct __sk_buff *skb, ip_header **ip)
{
	*ip = (void *)(long)skb->data + FL_ETH_LEN;
	return (void *)(*ip + 1) <= (void *)(long)skb->data_end;
}

#endif
