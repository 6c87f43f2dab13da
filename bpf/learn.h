/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the kernel made of a packet that it was left: notes for admission, no packet is changed. */
#ifndef FLANNEL_LEARN_H
#define FLANNEL_LEARN_H

#include "flows.h"
#include "pods.h"
#include "tunnel.h"

/* Both fl_to_* see what the kernel made of a packet. FL_GO_ON: *p is filled in. */
static __always_inline enum fl_reason parse_learning(struct __sk_buff *skb, __u32 offset, void **data,
						     struct fl_packet *p)
{
	void *end;

	if (offset && skb->protocol != bpf_htons(ETH_P_IP)) /* without a link layer, the version says it */
		return FL_NOT_IPV4;
	if (!readable_ipv4(skb, offset, data, &end))
		return FL_TRUNCATED;
	return parse_ipv4(*data + offset, end, skb->len - offset, true, 0, p);
}

static __always_inline enum fl_reason to_peer(struct __sk_buff *skb)
{
	__u32 offset = fl_cfg.backend == FL_MODE_UDP ? 0 : FL_ETH_LEN; /* a TUN has no link layer */
	struct fl_flow_key_v4 key;
	struct fl_packet p = {};
	enum fl_reason reason;
	struct fl_flow *flow;
	void *data;

	reason = parse_learning(skb, offset, &data, &p);
	if (reason)
		return reason;
	if (changes_tcp_state(&p))
		return FL_TCP_STATE;
	key = key_of_tx(&p);
	flow = bpf_map_lookup_elem(&fl_flows, &key);
	if (!flow || !(flow->bits & FL_TX_ENTERED))
		return FL_LEARN_CHANGED;
	flow->tx_since = clock_ns();
	flow->bits |= FL_TX_LEFT;
	return FL_LEARN_LEFT;
}

static __always_inline enum fl_reason to_pod(struct __sk_buff *skb)
{
	struct fl_flow_key_v4 key;
	struct fl_packet p = {};
	enum fl_reason reason;
	struct fl_flow *flow;
	struct ethhdr *eth;
	void *data;

	reason = parse_learning(skb, FL_ETH_LEN, &data, &p);
	if (reason)
		return reason;
	eth = data;
	if (eth->h_dest[0] & 1)
		return FL_NOT_UNICAST;
	if (!in_own_subnet(p.dst))
		return FL_NOT_OVERLAY;
	learn_pod(skb, eth, (void *)(eth + 1));
	if (!FL_BY_FLOW)
		return FL_LEARN_DELIVERED;
	if (changes_tcp_state(&p))
		return FL_TCP_STATE;
	key = key_of_rx(&p);
	flow = bpf_map_lookup_elem(&fl_flows, &key);
	if (!flow || !(flow->bits & FL_RX_ARRIVED))
		return FL_LEARN_CHANGED;
	if (flow->ifindex != skb->ifindex) {
		flow->ifindex = skb->ifindex;
		flow->bits = FL_RX_ARRIVED;
	}
	flow->rx_since = clock_ns();
	flow->bits |= FL_RX_DELIVERED;
	return FL_LEARN_DELIVERED;
}

/*
 * Only packets that fl_from_* marked are looked at; the mark ends here. IGMP and MLD reports may look marked:
 * they keep a length in the same word.
 */
static __always_inline bool take_mark(struct __sk_buff *skb)
{
	__u32 mark = skb->mark;

	if (!(mark & fl_cfg.learn_mark))
		return false;
	skb->mark = mark & ~fl_cfg.learn_mark;
	return true;
}

#endif
