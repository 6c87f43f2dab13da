/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The tc programs, named by where a packet comes from or goes to. Read from the bottom up.
 *
 *     pod -> veth --[fl_from_pod]--> bridge, netfilter, routing -> tunnel device --[fl_to_peer]--> uplink
 *     uplink --[fl_from_peer]--> tunnel device -> netfilter, routing, bridge --[fl_to_pod]--> veth -> pod
 *
 * fl_from_pod and fl_from_peer carry admitted packets themselves and leave all others to the kernel,
 * unmodified. fl_to_peer and fl_to_pod change nothing: they note what the kernel did with marked packets.
 */
#include "direct.h"
#include "flows.h"
#include "udp.h"
#include "verdict.h"
#include "vxlan.h"

#define FL_BY_FLOW (fl_cfg.fastpath == FL_FASTPATH_FLOWS)

/* May this packet of a pod leave the kernel's path? FL_UNKNOWN: yes. */
static __always_inline enum fl_reason admit_tx(struct __sk_buff *skb, const struct ethhdr *eth,
					       const struct fl_packet *p)
{
	struct fl_flow_key_v4 key = key_of_tx(p);
	__u32 place = sketch_place(&key, FL_SKETCH_TX);
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
	if (!ends && !young)
		flow = bpf_map_lookup_elem(&fl_flows, &key);
	direction = direction_tx(flow);
	if (flow && flow->ifindex == skb->ifindex && is_open(flow, &direction, p->proto, now))
		return FL_UNKNOWN;
	reason = check_sender(skb, eth, p->src);
	if (reason)
		return reason;
	if (ends) {
		end_flow(cell, &key, p->tcp_flags);
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

/* Is this packet's flow open towards a pod? FL_UNKNOWN: yes. */
static __always_inline enum fl_reason admit_rx_flow(struct __sk_buff *skb, const struct fl_packet *p,
						    struct fl_pod_v4 **pod)
{
	struct fl_flow_key_v4 key = key_of_rx(p);
	__u32 place = sketch_place(&key, FL_SKETCH_RX);
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
		end_flow(cell, &key, p->tcp_flags);
		return FL_TCP_STATE;
	}
	if (is_young(cell))
		return FL_LEARN_YOUNG;
	flow = bpf_map_lookup_elem(&fl_flows, &key);
	direction = direction_rx(flow);
	if (!flow || !is_open(flow, &direction, p->proto, now))
		return learn_start(skb, &key, flow, &direction, 0, place, now);
	*pod = find_pod(p->dst);
	if (*pod && (*pod)->ifindex != flow->ifindex) {
		flow->bits = 0;
		return learn_start(skb, &key, flow, &direction, 0, place, now);
	}
	return FL_UNKNOWN;
}

/* May this packet for a pod leave the kernel's path, and where to? FL_UNKNOWN: yes, to *pod. */
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
	return (*pod)->flags & FL_POD_SHAPED ? FL_SHAPED : FL_UNKNOWN;
}

static __always_inline __u32 overhead(const struct fl_peer_v4 *peer)
{
	switch (peer->mode) {
	case FL_MODE_VXLAN:
		return FL_VXLAN_OVERHEAD;
	case FL_MODE_UDP:
		return FL_UDP_OVERHEAD;
	default:
		return 0;
	}
}

/* Carry an admitted packet to its peer. fl_cfg.backend comes first, so that unused modes cost nothing. */
static __always_inline enum fl_reason send(struct __sk_buff *skb, struct iphdr *ip, const void *end,
					   const struct fl_packet *p, const struct fl_peer_v4 *peer)
{
	__u32 count = segments(skb);
	enum fl_reason reason;

	if (fl_cfg.backend == FL_MODE_VXLAN && peer->mode == FL_MODE_VXLAN)
		reason = vxlan_send(skb, p, peer);
	else if (fl_cfg.backend == FL_MODE_UDP && peer->mode == FL_MODE_UDP)
		reason = udp_send(skb, ip, end, p, peer);
	else if (peer->mode == FL_MODE_DIRECT)
		reason = direct_send(ip, peer);
	else
		return FL_NOT_OVERLAY;
	if (reason <= FL_FAST_UDP)
		count_tx(peer, p, count);
	return reason;
}

static __always_inline enum fl_reason from_pod(struct __sk_buff *skb)
{
	enum fl_reason reason;
	struct fl_peer_v4 *peer;
	struct fl_packet p = {};
	struct ethhdr *eth;
	struct iphdr *ip;
	void *data, *end;

	if (!readable_ipv4(skb, FL_ETH_LEN, &data, &end))
		return FL_TRUNCATED;
	eth = data;
	ip = (void *)(eth + 1);
	if (eth->h_proto == bpf_htons(ETH_P_ARP))
		forget_moved_pod(skb, (void *)ip);
	if (eth->h_proto != bpf_htons(ETH_P_IP) || skb->vlan_present)
		return FL_NOT_IPV4;
	if (eth->h_dest[0] & 1)
		return FL_NOT_UNICAST;
	if (!in_network(ip->daddr) || in_own_subnet(ip->daddr))
		return is_multicast_v4(ip->daddr) ? FL_NOT_UNICAST : FL_NOT_OVERLAY;
	peer = find_peer(ip->daddr);
	if (!peer || peer->mode == FL_MODE_NONE)
		return FL_NOT_OVERLAY;
	if (!(fl_cfg.caps & FL_CAP_REDIRECT_NEIGH))
		return FL_HELPER;
	reason = parse_ipv4(ip, end, skb->len - FL_ETH_LEN, false, ttl_cost(fl_cfg.backend), &p);
	if (reason)
		return reason;
	if (segment_len(skb, &p) + overhead(peer) > peer->mtu || p.len + overhead(peer) > 0xffff)
		return FL_TOO_BIG;
	reason = FL_BY_FLOW ? admit_tx(skb, eth, &p) : check_sender(skb, eth, p.src);
	return reason ? reason : send(skb, ip, end, &p, peer);
}

/* A plain packet on the uplink, from a host-gw peer to a local pod. */
static __always_inline enum fl_reason from_wire(struct __sk_buff *skb)
{
	struct fl_peer_v4 *peer;
	struct fl_packet p = {};
	struct fl_pod_v4 *pod;
	enum fl_reason reason;
	struct ethhdr *eth;
	struct iphdr *ip;
	void *data, *end;
	__u32 count;

	if (!readable_ipv4(skb, FL_ETH_LEN, &data, &end))
		return FL_TRUNCATED;
	eth = data;
	ip = (void *)(eth + 1);
	peer = find_peer(ip->saddr);
	if (!peer || peer->mode != FL_MODE_DIRECT)
		return FL_NOT_OVERLAY;
	reason = parse_ipv4(ip, end, skb->len - FL_ETH_LEN, true, ttl_cost(FL_MODE_DIRECT), &p);
	if (reason)
		return reason;
	reason = admit_rx(skb, &p, &pod);
	if (reason)
		return reason;
	count = segments(skb);
	reason = direct_deliver(skb, eth, pod);
	if (reason == FL_FAST_DIRECT)
		count_rx(peer, &p, count);
	return reason;
}

static __always_inline enum fl_reason from_vxlan(struct __sk_buff *skb)
{
	struct fl_outer *outer;
	struct fl_peer_v4 *peer;
	struct fl_packet p = {};
	struct fl_vxlan *vxlan;
	struct ethhdr *inner;
	struct fl_pod_v4 *pod;
	enum fl_reason reason;
	struct iphdr *ip;
	void *data, *end;
	__u8 outer_tos;
	__u32 count;

	if (!readable_ipv4(skb, FL_VXLAN_INNER, &data, &end))
		return FL_TRUNCATED;
	outer = data + FL_ETH_LEN;
	vxlan = (void *)(outer + 1);
	inner = (void *)(vxlan + 1);
	ip = (void *)(inner + 1);
	reason = match_vxlan(vxlan);
	if (reason)
		return reason;
	if (inner->h_proto != bpf_htons(ETH_P_IP)) {
		reason = check_member(outer->ip.saddr);
		return reason ? reason : FL_NOT_IPV4;
	}
	peer = find_peer(ip->saddr);
	reason = check_peer_source(peer, outer->ip.saddr, ip->saddr);
	if (reason)
		return reason;
	if (peer && peer->mode == FL_MODE_NONE)
		return FL_NOT_OVERLAY;
	reason = match_inner_mac(inner);
	if (reason)
		return reason;
	outer_tos = outer->ip.tos;
	reason = parse_ipv4(ip, end, skb->len - FL_VXLAN_INNER, false, ttl_cost(FL_MODE_VXLAN), &p);
	if (reason)
		return reason;
	reason = match_ecn(outer_tos, p.tos);
	if (reason)
		return reason;
	if (keeps_tunnel_state(skb, &p))
		return FL_GSO;
	reason = admit_rx(skb, &p, &pod);
	if (reason)
		return reason;
	count = segments(skb);
	reason = vxlan_deliver(skb, &p, pod, outer_tos);
	if (peer && reason == FL_FAST_VXLAN)
		count_rx(peer, &p, count);
	return reason;
}

/* *taken: the packet goes on from the TUN. */
static __always_inline enum fl_reason from_udp(struct __sk_buff *skb, bool *taken)
{
	struct fl_outer *outer;
	struct fl_peer_v4 *peer;
	struct fl_packet p = {};
	struct fl_pod_v4 *pod;
	enum fl_reason reason;
	struct iphdr *ip;
	void *data, *end;
	__u32 count;

	if (!readable_ipv4(skb, FL_UDP_INNER, &data, &end))
		return FL_TRUNCATED;
	outer = data + FL_ETH_LEN;
	ip = (void *)(outer + 1);
	if (skb->gso_size && bpf_ntohs(ip->tot_len) != skb->len - FL_UDP_INNER)
		return FL_GSO; /* several datagrams of a relay in one piece: nothing has cut them on the way */
	peer = find_peer(ip->saddr);
	reason = check_peer_source(peer, outer->ip.saddr, ip->saddr);
	if (reason)
		return reason;
	if (peer && peer->mode == FL_MODE_NONE)
		return FL_NOT_OVERLAY;
	reason = parse_ipv4(ip, end, skb->len - FL_UDP_INNER, false, ttl_cost(FL_MODE_UDP), &p);
	if (reason)
		return reason;
	if (keeps_tunnel_state(skb, &p))
		return FL_GSO;
	reason = admit_rx(skb, &p, &pod);
	if (reason) {
		*taken = udp_to_kernel(skb, outer);
		return reason;
	}
	count = segments(skb);
	reason = udp_deliver(skb, pod);
	if (peer && reason == FL_FAST_UDP)
		count_rx(peer, &p, count);
	return reason;
}

static __always_inline enum fl_reason from_peer(struct __sk_buff *skb, bool *taken)
{
	enum fl_reason reason;
	struct ethhdr *eth;
	struct iphdr *ip;
	void *data, *end;

	if (skb->pkt_type != 0) /* PACKET_HOST */
		return FL_NOT_UNICAST;
	if (!readable(skb, FL_OUTER_LEN, &data, &end))
		return FL_TRUNCATED;
	eth = data;
	ip = (void *)(eth + 1);
	if (eth->h_proto != bpf_htons(ETH_P_IP) || skb->vlan_present)
		return FL_NOT_IPV4;
	if (fl_cfg.backend != FL_MODE_DIRECT && ip->daddr == FL_CFG_ADDR(public_ip)) {
		reason = match_outer(eth, skb->len);
		if (reason)
			return reason;
		return fl_cfg.backend == FL_MODE_UDP ? from_udp(skb, taken) : from_vxlan(skb);
	}
	if ((fl_cfg.backend == FL_MODE_DIRECT || fl_cfg.direct_routing) && in_own_subnet(ip->daddr))
		return from_wire(skb);
	return FL_NOT_OVERLAY;
}

/* Both fl_to_* see what the kernel made of a packet. FL_UNKNOWN: *p is filled in. */
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

/*
 * tc egress of a pod's veth: from the kernel to the pod. With udp the relay stands between, and what it writes
 * into the TUN is a new packet without a mark: so every packet is looked at.
 */
SEC("tc")
int fl_to_pod(struct __sk_buff *skb)
{
	if (!take_mark(skb) && fl_cfg.backend != FL_MODE_UDP)
		return TC_ACT_UNSPEC;
	return tc_verdict(FL_HOOK_TO_POD, to_pod(skb));
}

/* tc ingress of the uplink: from another node to the kernel. */
SEC("tc")
int fl_from_peer(struct __sk_buff *skb)
{
	bool taken = false;
	int verdict = tc_verdict(FL_HOOK_FROM_PEER, from_peer(skb, &taken));

	return taken ? TC_ACT_REDIRECT : verdict;
}

/* tc egress of flannel.<VNI>, of the TUN (udp) or of the uplink (direct): from the kernel to another node. */
SEC("tc")
int fl_to_peer(struct __sk_buff *skb)
{
	if (!take_mark(skb))
		return TC_ACT_UNSPEC;
	return tc_verdict(FL_HOOK_TO_PEER, to_peer(skb));
}

/* tc ingress of a pod's veth: from the pod to the kernel. */
SEC("tc")
int fl_from_pod(struct __sk_buff *skb)
{
	return tc_verdict(FL_HOOK_FROM_POD, from_pod(skb));
}

char _license[] SEC("license") = "Dual BSD/GPL";
