/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* host-gw, and vxlan's DirectRouting: no outer header, the peer is the next hop. */
#ifndef FLANNEL_DIRECT_H
#define FLANNEL_DIRECT_H

#include "send.h"

/* `ip` is the packet in place; every check has passed. */
static __always_inline enum fl_reason direct_send(struct iphdr *ip, const struct fl_peer_v4 *peer)
{
	decrement_ttl(ip, ttl_cost(FL_MODE_DIRECT));
	return send_to_peer(peer, FL_FAST_DIRECT);
}

static __always_inline enum fl_reason direct_deliver(struct __sk_buff *skb, struct iphdr *ip,
						     const struct fl_pod_v4 *pod)
{
	decrement_ttl(ip, ttl_cost(FL_MODE_DIRECT));
	return deliver(skb, ip, pod, FL_FAST_DIRECT);
}

#endif
