/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* May a packet leave the kernel's path? The rule of --fastpath, for both directions. */
#ifndef FLANNEL_ADMIT_H
#define FLANNEL_ADMIT_H

#include "flows.h"
#include "open.h"
#include "pods.h"

/* May this packet of a pod leave the kernel's path? FL_GO_ON: yes. */
static __always_inline enum fl_reason admit_tx(struct __sk_buff *skb, const struct ethhdr *eth,
					       const struct fl_packet *p)
{
	struct fl_flow_key_v4 key = key_of_tx(p);
	struct fl_opening opening = {
		.key = &key,
		.hash = flow_hash(&key),
		.ifindex = skb->ifindex,
		.way = FL_WAY_OUT,
	};
	__u32 place = sketch_place(opening.hash, FL_WAY_OUT);
	struct fl_direction direction;
	struct fl_flow *flow = NULL;
	__u64 now = clock_ns();
	enum fl_reason reason;
	struct fl_cell *cell;
	bool ends, young;

	cell = sketch_cell(place, now);
	if (!cell)
		return FL_HELPER;
	ends = changes_tcp_state(p);
	young = !ends && is_young(cell);
	opening.ended = cell->ended;
	if (!ends && !young) {
		if (is_known_open(&opening, now))
			return FL_GO_ON;
		flow = bpf_map_lookup_elem(&fl_flows, &key);
	}
	direction = direction_tx(flow);
	if (flow && flow->ifindex == skb->ifindex && is_open(flow, &direction, p->proto, now)) {
		note_open(&opening, opening_end(&direction, p->proto));
		return FL_GO_ON;
	}
	reason = check_sender(skb, eth, p->src);
	if (reason)
		return reason;
	if (ends) {
		end_flow(cell, &key, place, p->tcp_flags);
		return FL_TCP_STATE;
	}
	if (young)
		return FL_LEARN_YOUNG;
	return learn_start(skb, &key, flow, &direction, skb->ifindex, place, now);
}

/* No pod to deliver to; in our subnet the kernel may find one, and fl_to_pod learns it from this packet. */
static __always_inline enum fl_reason no_pod(struct __sk_buff *skb, const struct fl_packet *p)
{
	if (in_own_subnet(p->dst))
		skb->mark |= fl_cfg.learn_mark;
	return FL_NO_POD;
}

/* Is this packet's flow open towards a pod? FL_GO_ON: yes. */
static __always_inline enum fl_reason admit_rx_flow(struct __sk_buff *skb, const struct fl_packet *p,
						    struct fl_pod_v4 **pod)
{
	struct fl_flow_key_v4 key = key_of_rx(p);
	struct fl_opening opening = { .key = &key, .hash = flow_hash(&key), .way = FL_WAY_IN };
	__u32 place = sketch_place(opening.hash, FL_WAY_IN);
	struct fl_direction direction;
	__u64 now = clock_ns();
	struct fl_flow *flow;
	struct fl_cell *cell;

	if (!in_own_subnet(p->dst))
		return FL_NO_POD;
	cell = sketch_cell(place, now);
	if (!cell)
		return FL_HELPER;
	if (changes_tcp_state(p)) {
		end_flow(cell, &key, place, p->tcp_flags);
		return FL_TCP_STATE;
	}
	if (is_young(cell))
		return FL_LEARN_YOUNG;
	*pod = find_pod(p->dst);
	opening.ifindex = *pod ? (*pod)->ifindex : 0;
	opening.ended = cell->ended;
	if (*pod && is_known_open(&opening, now))
		return FL_GO_ON;
	flow = bpf_map_lookup_elem(&fl_flows, &key);
	direction = direction_rx(flow);
	if (!flow || !is_open(flow, &direction, p->proto, now))
		return learn_start(skb, &key, flow, &direction, 0, place, now);
	if (*pod && (*pod)->ifindex != flow->ifindex) {
		flow->bits = 0;
		return learn_start(skb, &key, flow, &direction, 0, place, now);
	}
	note_open(&opening, opening_end(&direction, p->proto));
	return FL_GO_ON;
}

/* May this packet for a pod leave the kernel's path, and where to? FL_GO_ON: yes, to *pod. */
static __always_inline enum fl_reason admit_rx(struct __sk_buff *skb, const struct fl_packet *p,
					       struct fl_pod_v4 **pod)
{
	enum fl_reason reason;

	if (FL_BY_FLOW) {
		reason = admit_rx_flow(skb, p, pod);
		if (reason)
			return reason;
	} else {
		*pod = find_pod(p->dst);
	}
	if (!*pod)
		return no_pod(skb, p);
	return (*pod)->flags & FL_POD_SHAPED ? FL_SHAPED : FL_GO_ON;
}

#endif
