/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * VXLAN as the kernel's device sends and takes it, drivers/net/vxlan: the peer cannot tell the difference but
 * by the outer UDP checksum.
 */
#ifndef FLANNEL_VXLAN_H
#define FLANNEL_VXLAN_H

#include "send.h"
#include "tunnel.h"

#define FL_VXLAN_FLAGS bpf_htonl(0x08000000) /* I flag, everything reserved zero */

/* BPF_F_ADJ_ROOM_ENCAP_L2_ETH may be newer than the headers of the build host. */
#define FL_ROOM_L2_ETH (1ULL << 6)

/* udp_flow_src_port() of the kernel: flows keep their port, hence their path, when they change between us. */
static __always_inline __u16 vxlan_source_port(__u32 hash)
{
	hash ^= hash << 16;
	return (((__u64)hash * fl_cfg.sport_count) >> 32) + fl_cfg.sport_min;
}

/* INET_ECN_encapsulate() with the device's tos 0: ECN is copied, CE becomes ECT(0). */
static __always_inline __u8 vxlan_outer_tos(__u8 inner)
{
	__u8 ecn = inner & FL_ECN_MASK;

	return ecn == FL_ECN_CE ? FL_ECN_ECT_0 : ecn;
}

/* Encapsulate and send a packet; `hops`: what is still to be taken from its TTL. */
static __always_inline enum fl_reason vxlan_send(struct __sk_buff *skb, const struct fl_packet *p, __u8 hops,
						 const struct fl_peer *peer)
{
	__u64 flags = BPF_F_ADJ_ROOM_ENCAP_L2(FL_ETH_LEN);
	enum fl_reason reason;
	struct fl_outer *outer;
	struct fl_vxlan *vxlan;
	struct ethhdr *inner;
	void *data, *end;
	__u32 hash, segment;

	if (skb->gso_size && !(fl_cfg.caps & FL_CAP_ENCAP_L2_ETH))
		return FL_GSO;
	if (fl_cfg.caps & FL_CAP_ENCAP_L2_ETH)
		flags |= FL_ROOM_L2_ETH;
	reason = can_seal(skb, p);
	if (reason)
		return reason;
	segment = segment_len(skb, p);
	hash = bpf_get_hash_recalc(skb);
	reason = make_room(skb, FL_VXLAN_OVERHEAD, flags);
	if (reason)
		return reason;
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if (data + FL_VXLAN_INNER + FL_IP_LEN > end)
		return FL_DROP_BROKEN;
	outer = data + FL_ETH_LEN;
	write_outer(outer, p->len + FL_VXLAN_OVERHEAD, vxlan_outer_tos(p->tos), 0, bpf_get_prandom_u32(),
		    public_ip(peer), vxlan_source_port(hash));
	vxlan = (void *)(outer + 1);
	vxlan->flags = FL_VXLAN_FLAGS;
	vxlan->vni = vxlan_vni();
	inner = (void *)(vxlan + 1);
	copy_mac(inner->h_dest, peer->vtep_mac);
	copy_mac(inner->h_source, fl_cfg.vtep_mac);
	inner->h_proto = FL_ETHERTYPE;
	if (hops)
		decrement_ttl((void *)(inner + 1), hops);
	seal(outer, (void *)(inner + 1), end, p, segment);
	return send_to_peer(skb, peer, !hops, FL_FAST_VXLAN);
}

static __always_inline enum fl_reason match_vxlan(const struct fl_vxlan *vxlan)
{
	if (vxlan->flags != FL_VXLAN_FLAGS || vxlan->vni & bpf_htonl(0xff))
		return FL_VXLAN_HEADER;
	return vxlan->vni == vxlan_vni() ? FL_GO_ON : FL_VNI;
}

/* Inner Ethernet header: the kernel would take it for its own device, and not as its own echo. */
static __always_inline enum fl_reason match_inner_mac(const struct ethhdr *inner)
{
	const volatile void *own = fl_cfg.vtep_mac;

	if (!same_mac(inner->h_dest, own) || same_mac(inner->h_source, own))
		return FL_INNER_MAC;
	if (inner->h_source[0] & 1 || (!*(const word32 *)inner->h_source && !*(const __u16 *)&inner->h_source[4]))
		return FL_INNER_MAC;
	return FL_GO_ON;
}

/* RFC 6040 at the tunnel's end. FL_ECN where the kernel would drop, log, or differ between versions. */
static __always_inline enum fl_reason match_ecn(__u8 outer, __u8 inner)
{
	outer &= FL_ECN_MASK;
	inner &= FL_ECN_MASK;
	if (!inner && outer)
		return FL_ECN;
	return inner == FL_ECN_ECT_0 && outer == FL_ECN_ECT_1 ? FL_ECN : FL_GO_ON;
}

/* Take the outer headers off a packet on which every check has passed; *ip is then the inner packet. */
static __always_inline enum fl_reason vxlan_open(struct __sk_buff *skb, __u8 outer_tos, __u8 proto, ip_header **ip)
{
	enum fl_reason reason;

	reason = take_off(skb, FL_VXLAN_OVERHEAD, proto);
	if (reason)
		return reason;
	if (!inner_ip(skb, ip))
		return FL_DROP_BROKEN;
	if ((outer_tos & FL_ECN_MASK) == FL_ECN_CE && (tos_of(*ip) & FL_ECN_MASK) != FL_ECN_CE)
		set_tos(*ip, tos_of(*ip) | FL_ECN_CE);
	return FL_GO_ON;
}

#endif
