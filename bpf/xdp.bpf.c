/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Drops tunnel packets that no member sent, or that carry a source that is another's, before the kernel spends an
 * skb on them. Everything else passes.
 */
#define FLANNEL_XDP

#include "node.h"
#include "sender.h"
#include "verdict.h"

static __always_inline enum fl_reason guard(struct xdp_md *xdp)
{
	void *data = (void *)(long)xdp->data;
	void *end = (void *)(long)xdp->data_end;
	struct ethhdr *eth = data;
	ip_header *ip = data + FL_ETH_LEN;
	struct fl_peer *peer;
	enum fl_reason reason;

	if ((void *)(ip + 1) > end)
		return FL_TRUNCATED;
	if (eth->h_proto != FL_ETHERTYPE)
		return FL_NOT_FAMILY;
	if (!same_addr(target_of(ip), own_ip()))
		return FL_NOT_OVERLAY;
	if (stands_aside(clock_ns()))
		return FL_STAND_ASIDE;
	reason = check_sender_of(ip, end, &peer);
	return reason ? reason : FL_MEMBER;
}

/* XDP of the uplink. */
SEC("xdp")
int fl_xdp(struct xdp_md *xdp)
{
	enum fl_reason reason = guard(xdp);

	count_reason(FL_HOOK_XDP, reason);
	return is_drop(reason) ? XDP_DROP : XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
