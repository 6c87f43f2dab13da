/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Who sent a tunnel packet? Asked by tc and XDP of whatever the kernel might take for one, before it is asked
 * whether the packet is well-formed: the kernel takes outer options, fragments and lengths that do not quite fit.
 */
#ifndef FLANNEL_SENDER_H
#define FLANNEL_SENDER_H

#include "peers.h"
#include "tunnel.h"

/* The longest frame of which check_sender_of() reads the end: outer options, and the inner IPv4 header. */
#define FL_SENDER_LEN (FL_VXLAN_INNER + FL_IP_MAX_LEN)

/* The inner IPv4 header, or NULL when the frame ends before it, or something else is inside. */
static __always_inline const ip_header *inner_of(const struct udphdr *udp, const void *end)
{
	const struct fl_vxlan *vxlan = (const void *)(udp + 1);
	const struct ethhdr *eth = (const void *)(vxlan + 1);
	const ip_header *ip = fl_cfg.backend == FL_MODE_UDP ? (const void *)(udp + 1) : (const void *)(eth + 1);

	if ((const void *)(ip + 1) > end)
		return NULL;
	return fl_cfg.backend == FL_MODE_UDP || eth->h_proto == FL_ETHERTYPE ? ip : NULL;
}

/* Does a vxlan packet say that it is another network's? Then it is nobody's business here. */
static __always_inline bool other_vni(const struct udphdr *udp, const void *end)
{
	const struct fl_vxlan *vxlan = (const void *)(udp + 1);

	return fl_cfg.backend == FL_MODE_VXLAN && (const void *)(vxlan + 1) <= end &&
	       (vxlan->vni & bpf_htonl(0xffffff00)) != vxlan_vni();
}

/*
 * An IPv4 packet for our public address. FL_GO_ON: a tunnel packet, and who sent it may; *peer is the holder of
 * the inner source's subnet, NULL if there is none or the inner source cannot be read.
 */
static __always_inline enum fl_reason check_sender_of(const ip_header *ip, const void *end, struct fl_peer **peer)
{
	const struct udphdr *udp;
	const ip_header *inner;
	enum fl_reason reason;
	bool first;

	*peer = NULL;
	reason = find_udp(ip, end, &udp, &first);
	if (reason == FL_FRAGMENT)
		return FL_OUTER; /* without its first fragment, no packet becomes whole */
	if (reason == FL_TRUNCATED)
		return check_member(source_of(ip));
	if (reason)
		return FL_NOT_OVERLAY;
	if ((const void *)(udp + 1) > end || udp->dest != bpf_htons(fl_cfg.port))
		return FL_NOT_OVERLAY;
	if (other_vni(udp, end))
		return FL_VNI;
	inner = inner_of(udp, end);
	if (inner) {
		*peer = find_peer(source_of(inner));
		return check_peer_source(peer, source_of(ip), source_of(inner));
	}
	if (first && fl_cfg.source_check != FL_CHECK_OFF)
		return FL_DROP_NOT_MEMBER; /* too short a first fragment to say who sent what is inside */
	return check_member(source_of(ip));
}

#endif
