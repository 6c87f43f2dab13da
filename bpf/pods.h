/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Local pods: learned where the kernel delivers to, if the pod there speaks from the MAC that it is called by;
 * forgotten when somebody else answers for the address.
 */
#ifndef FLANNEL_PODS_H
#define FLANNEL_PODS_H

#include "parse.h"

/* Both take volatile MACs: what fl_cfg holds at run time is not what the compiler sees. */
static __always_inline void copy_mac(void *to, const volatile void *from)
{
	*(word32 *)to = *(const volatile word32 *)from;
	*(__u16 *)(to + 4) = *(const volatile __u16 *)(from + 4);
}

static __always_inline bool same_mac(const void *a, const volatile void *b)
{
	return *(const word32 *)a == *(const volatile word32 *)b &&
	       *(const __u16 *)(a + 4) == *(const volatile __u16 *)(b + 4);
}

/* The pod at this address, or NULL while its place is not known. */
static __always_inline struct fl_pod *find_pod(ip_addr addr)
{
	struct fl_addr key;

	__builtin_memcpy(key.addr, &addr, sizeof(key.addr));
	return bpf_map_lookup_elem(&fl_pods, &key);
}

static __always_inline struct fl_port *find_port(__u32 ifindex)
{
	return bpf_map_lookup_elem(&fl_ports, &ifindex);
}

/* The pod behind this veth speaks from that MAC: what a bridge would learn. */
static __always_inline void note_speaker(struct fl_port *port, const struct ethhdr *eth)
{
	if (port && !same_mac(port->mac, eth->h_source))
		copy_mac(port->mac, eth->h_source);
}

/*
 * A pod that gets a used address must say so before it can send, by ARP or neighbour discovery: then the old pod's
 * entry goes, so that nothing is delivered to the old veth.
 */
static __always_inline void hear_claim(struct __sk_buff *skb, const struct ethhdr *eth, const void *end)
{
	const void *addr, *mac;
	struct fl_pod *pod;

	if (!claims_address(eth, end, &addr, &mac))
		return;
	note_speaker(find_port(skb->ifindex), eth);
	pod = bpf_map_lookup_elem(&fl_pods, addr);
	if (pod && !(pod->flags & FL_POD_NODE) && (pod->ifindex != skb->ifindex || !same_mac(pod->mac, mac)))
		bpf_map_delete_elem(&fl_pods, addr);
}

/* Must all of a pod's packets take the kernel's path? */
static __always_inline enum fl_reason check_flags(enum fl_pod_flag flags)
{
	if (flags & FL_POD_SHAPED)
		return FL_SHAPED;
	return flags & FL_POD_GUARDED ? FL_GUARDED : FL_GO_ON;
}

/* What holds for a pod at this address behind that port. */
static __always_inline enum fl_pod_flag flags_of(const struct fl_port *port, ip_addr addr)
{
	struct fl_subnet key = { .len = 8 * FL_ADDR_LEN };
	struct fl_level *level;

	__builtin_memcpy(key.addr, &addr, sizeof(key.addr));
	level = bpf_map_lookup_elem(&fl_levels, &key);
	return (port ? port->flags : 0) | (level ? level->flags : 0);
}

/* Do all of this pod's packets leave the kernel's path? */
static __always_inline bool is_stateless(const struct fl_pod *pod, __u64 now)
{
	__u32 zero = 0;
	struct fl_proof *proof;

	if (fl_cfg.fastpath != FL_FASTPATH_AUTO || !pod || !(pod->flags & FL_POD_STATELESS))
		return false;
	proof = bpf_map_lookup_elem(&fl_proof, &zero);
	return proof && now < proof->until;
}

/* May the pod behind this veth send packets from this address past the kernel? */
static __always_inline enum fl_reason check_sender(struct __sk_buff *skb, const struct ethhdr *eth, ip_addr src)
{
	struct fl_pod *pod;
	struct fl_port *port;

	if (!in_own_subnet(src))
		return FL_POD_SOURCE;
	pod = find_pod(src);
	if (pod && pod->flags & FL_POD_NODE)
		return fl_cfg.source_check == FL_CHECK_OFF ? FL_POD_SOURCE : FL_DROP_POD_SOURCE;
	if (!pod || pod->ifindex != skb->ifindex) {
		port = find_port(skb->ifindex);
		note_speaker(port, eth);
		return pod ? FL_POD_SOURCE : check_flags(flags_of(port, src));
	}
	if (!same_mac(eth->h_dest, pod->gateway_mac))
		return FL_NOT_GATEWAY;
	return check_flags(pod->flags);
}

/*
 * The kernel delivers a packet for this address here. That is where the pod lives, unless a bridge that does not
 * know the MAC sends the packet to every port: so the pod must have spoken from that MAC.
 */
static __always_inline void learn_pod(struct __sk_buff *skb, const struct ethhdr *eth, ip_addr addr)
{
	struct fl_pod *pod = find_pod(addr);
	struct fl_pod new = { .ifindex = skb->ifindex };
	struct fl_port *port;
	struct fl_addr key;

	if (pod && pod->ifindex == skb->ifindex && same_mac(pod->mac, eth->h_dest) &&
	    same_mac(pod->gateway_mac, eth->h_source))
		return;
	port = find_port(skb->ifindex);
	if (!port || !same_mac(port->mac, eth->h_dest) || (pod && pod->flags & FL_POD_NODE))
		return;
	__builtin_memcpy(key.addr, &addr, sizeof(key.addr));
	__builtin_memcpy(new.mac, eth->h_dest, sizeof(new.mac));
	__builtin_memcpy(new.gateway_mac, eth->h_source, sizeof(new.gateway_mac));
	new.flags = flags_of(port, addr);
	bpf_map_update_elem(&fl_pods, &key, &new, BPF_ANY);
}

#endif
