/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * May a packet leave the kernel's path? The rule of --fastpath, one for both directions: judge() looks, learn()
 * draws the consequences where the kernel carries the packet.
 */
#ifndef FLANNEL_ADMIT_H
#define FLANNEL_ADMIT_H

#include "lessons.h"
#include "open.h"
#include "pods.h"

/* Everything but an ACK with data or without is conntrack's: it opens, ends, or is odd. */
static __always_inline bool changes_tcp_state(const struct fl_packet *p)
{
	const __u8 state = FL_TCP_SYN | FL_TCP_FIN | FL_TCP_RST | FL_TCP_ACK;

	return p->proto == IPPROTO_TCP && (p->tcp_flags & state) != FL_TCP_ACK;
}

/* Is this packet's flow open in its direction? FL_GO_ON: yes. Any other answer is for learn(). */
static __always_inline enum fl_reason judge(const struct fl_direction *d, const struct fl_packet *p)
{
	struct fl_flow *flow;
	__u64 end;

	if (changes_tcp_state(p))
		return FL_TCP_STATE;
	if (was_learned(d->cell)) {
		if (is_known_open(d))
			return FL_GO_ON;
		flow = bpf_map_lookup_elem(&fl_flows, &d->key);
		if (flow) {
			end = flow->ifindex == d->ifindex ? opening_end(flow, d) : 0;
			if (end && !is_past(end, d->now)) {
				note_open(d, flow, end);
				return FL_GO_ON;
			}
			return end ? FL_LEARN_REVALIDATE : FL_LEARN_NEW;
		}
	}
	return is_young(d->cell) ? FL_LEARN_YOUNG : FL_LEARN_NEW;
}

/* Draw the consequences of judge()'s answer; return what is to be counted. `ttl_taken` as for start_lesson(). */
static __always_inline enum fl_reason learn(struct __sk_buff *skb, const ip_header *ip, const void *end,
					    const struct fl_packet *p, __u8 ttl_taken,
					    const struct fl_direction *d, enum fl_reason judged)
{
	if (judged == FL_TCP_STATE) {
		bool syn = p->tcp_flags & FL_TCP_SYN, ack = p->tcp_flags & FL_TCP_ACK;

		if (was_learned(d->cell) && p->tcp_flags & (FL_TCP_SYN | FL_TCP_FIN | FL_TCP_RST) && !(syn && ack))
			end_flow(&d->key, d->place);
		if (!syn || p->tcp_flags & (FL_TCP_FIN | FL_TCP_RST))
			return FL_TCP_STATE;
		judged = FL_LEARN_SYN;
	}
	if (judged != FL_LEARN_YOUNG)
		start_lesson(skb, ip, end, p, ttl_taken, d);
	return judged;
}

/* May this packet of a pod leave the kernel's path? FL_GO_ON: yes. */
static __always_inline enum fl_reason admit_tx(struct __sk_buff *skb, const struct ethhdr *eth, const void *end,
					       const struct fl_packet *p, __u64 now)
{
	struct fl_direction d;
	enum fl_reason judged, reason;

	if (!FL_BY_FLOW || (fl_cfg.fastpath == FL_FASTPATH_AUTO && is_stateless(find_pod(p->src), now)))
		return check_sender(skb, eth, p->src);
	if (p->no_flow)
		return FL_PROTOCOL;
	if (!find_direction(&d, p, FL_WAY_OUT, now))
		return FL_HELPER;
	d.ifindex = skb->ifindex;
	judged = judge(&d, p);
	if (!judged)
		return FL_GO_ON;
	reason = check_sender(skb, eth, p->src);
	return reason ? reason : learn(skb, (void *)(eth + 1), end, p, 1, &d, judged);
}

/* Is this packet's flow open towards a pod? FL_GO_ON: yes, and to *pod, if its place is known. */
static __always_inline enum fl_reason admit_flow_rx(struct __sk_buff *skb, const ip_header *ip, const void *end,
						    const struct fl_packet *p, __u8 ttl_taken, __u64 now,
						    struct fl_pod **pod)
{
	struct fl_direction d;
	enum fl_reason reason;

	if (fl_cfg.fastpath == FL_FASTPATH_AUTO) {
		*pod = find_pod(p->dst);
		/* a node's answer to its own address does not come this way */
		if (in_network(p->src) && is_stateless(*pod, now))
			return FL_GO_ON;
	}
	if (p->no_flow)
		return FL_PROTOCOL;
	if (!find_direction(&d, p, FL_WAY_IN, now))
		return FL_HELPER;
	if (fl_cfg.fastpath != FL_FASTPATH_AUTO)
		*pod = was_learned(d.cell) ? find_pod(p->dst) : NULL;
	if (*pod)
		d.ifindex = (*pod)->ifindex;
	reason = judge(&d, p);
	/* of a pod that may be stateless the place counts, however short its flows are */
	if (reason == FL_LEARN_YOUNG && fl_cfg.fastpath == FL_FASTPATH_AUTO && !*pod)
		reason = FL_LEARN_NEW;
	return reason ? learn(skb, ip, end, p, ttl_taken, &d, reason) : FL_GO_ON;
}

/* May this packet for a pod leave the kernel's path, and where to? FL_GO_ON: yes, to *pod. */
static __always_inline enum fl_reason admit_rx(struct __sk_buff *skb, const ip_header *ip, const void *end,
					       const struct fl_packet *p, __u8 ttl_taken, __u64 now,
					       struct fl_pod **pod)
{
	struct fl_direction d;
	enum fl_reason reason;

	if (!in_own_subnet(p->dst))
		return FL_NO_POD;
	if (FL_BY_FLOW) {
		reason = admit_flow_rx(skb, ip, end, p, ttl_taken, now, pod);
		if (reason)
			return reason;
	} else {
		*pod = find_pod(p->dst);
	}
	if (!*pod) {
		/* the kernel may know, and fl_to_pod learns from this packet */
		if (find_direction(&d, p, FL_WAY_IN, now))
			start_lesson(skb, ip, end, p, ttl_taken, &d);
		return FL_NO_POD;
	}
	return (*pod)->flags & FL_POD_NODE ? FL_NO_POD : check_flags((*pod)->flags);
}

#endif
