/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Drops tunnel packets that no member sent, or that carry a source outside the sender's subnet, before the
 * kernel spends an skb on them. Everything else passes.
 */
#define FLANNEL_XDP

#include "parse.h"
#include "peers.h"
#include "tunnel.h"
#include "verdict.h"

#define FL_VXLAN_LEN 8

static __always_inline enum fl_reason check_inner(const void *ip, const void *end, __u32 outer)
{
	const struct iphdr *inner = ip;

	if ((const void *)(inner + 1) > end)
		return FL_TRUNCATED;
	return check_peer_source(find_peer(inner->saddr), outer, inner->saddr);
}

static __always_inline enum fl_reason check_vxlan(const void *data, const void *end, __u32 outer)
{
	const __u32 *vxlan = data;
	const struct ethhdr *inner = data + FL_VXLAN_LEN;
	enum fl_reason reason;

	if ((const void *)(inner + 1) > end)
		return FL_TRUNCATED;
	if (vxlan[1] != bpf_htonl(fl_cfg.vni << 8))
		return FL_VNI;
	if (inner->h_proto == bpf_htons(ETH_P_IP))
		return check_inner(inner + 1, end, outer);
	reason = check_member(outer);
	return reason ? reason : FL_NOT_IPV4;
}

static __always_inline enum fl_reason guard(struct xdp_md *xdp)
{
	void *data = (void *)(long)xdp->data;
	void *end = (void *)(long)xdp->data_end;
	struct ethhdr *eth = data;
	struct fl_outer *outer = data + FL_ETH_LEN;
	enum fl_reason reason;

	if (data + FL_OUTER_LEN > end)
		return FL_TRUNCATED;
	if (eth->h_proto != bpf_htons(ETH_P_IP))
		return FL_NOT_IPV4;
	if (outer->ip.daddr != FL_CFG_ADDR(public_ip))
		return FL_NOT_OVERLAY;
	reason = match_outer(eth, end - data);
	if (reason)
		return reason;
	if (fl_cfg.backend == FL_MODE_UDP)
		reason = check_inner(outer + 1, end, outer->ip.saddr);
	else
		reason = check_vxlan(outer + 1, end, outer->ip.saddr);
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
