/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Local pods: learned from what the kernel delivers, forgotten when somebody else answers for the address.
 */
#ifndef FLANNEL_PODS_H
#define FLANNEL_PODS_H

#include "parse.h"

/* IPv4 over Ethernet ARP, RFC 826. */
struct fl_arp {
	__u16 hardware;
	__u16 protocol;
	__u8 hardware_len;
	__u8 protocol_len;
	__u16 operation;
	__u8 sender_mac[6];
	__u8 sender_ip[4];
	__u8 target_mac[6];
	__u8 target_ip[4];
};

/* Both take volatile MACs: what fl_cfg holds at run time is not what the compiler sees. */
static __always_inline void copy_mac(void *to, const volatile void *from)
{
	*(__u32 *)to = *(const volatile __u32 *)from;
	*(__u16 *)(to + 4) = *(const volatile __u16 *)(from + 4);
}

static __always_inline bool same_mac(const void *a, const volatile void *b)
{
	return *(const __u32 *)a == *(const volatile __u32 *)b &&
	       *(const __u16 *)(a + 4) == *(const volatile __u16 *)(b + 4);
}

/* The pod at this address, or NULL while its place is not known. */
static __always_inline struct fl_pod_v4 *find_pod(__u32 addr)
{
	struct fl_pod_v4 *pod;
	struct fl_addr_v4 key;

	__builtin_memcpy(key.addr, &addr, sizeof(key.addr));
	pod = bpf_map_lookup_elem(&fl_pods, &key);
	return pod && pod->ifindex ? pod : NULL;
}

static __always_inline enum fl_pod_flag port_flags(__u32 ifindex)
{
	struct fl_port *port = bpf_map_lookup_elem(&fl_ports, &ifindex);

	return port ? port->flags : 0;
}

/*
 * A pod that gets a used address must ARP before it can send: then the old pod's entry goes, so that nothing
 * is delivered to the old veth and the new pod is not taken for an impostor.
 */
static __always_inline void forget_moved_pod(struct __sk_buff *skb, const struct fl_arp *arp)
{
	struct fl_pod_v4 *pod;

	if (arp->hardware != bpf_htons(1) || arp->protocol != bpf_htons(ETH_P_IP))
		return;
	pod = bpf_map_lookup_elem(&fl_pods, arp->sender_ip);
	if (pod && (pod->ifindex != skb->ifindex || !same_mac(pod->mac, arp->sender_mac)))
		bpf_map_delete_elem(&fl_pods, arp->sender_ip);
}

/* May the pod behind this veth send packets from this address past the kernel? */
static __always_inline enum fl_reason check_sender(struct __sk_buff *skb, const struct ethhdr *eth, __u32 src)
{
	enum fl_pod_flag flags;
	struct fl_pod_v4 *pod;

	if (!in_own_subnet(src))
		return FL_POD_SOURCE;
	pod = find_pod(src);
	if (!pod) {
		flags = port_flags(skb->ifindex);
	} else {
		if (pod->ifindex != skb->ifindex)
			return fl_cfg.source_check == FL_CHECK_OFF ? FL_POD_SOURCE : FL_DROP_POD_SOURCE;
		if (!same_mac(eth->h_dest, pod->gateway_mac))
			return FL_NOT_GATEWAY;
		flags = pod->flags;
	}
	return flags & FL_POD_SHAPED ? FL_SHAPED : FL_GO_ON;
}

/*
 * The kernel delivers a packet for this address here: that is where the pod lives. A bridge that does not
 * know the MAC floods, and the same packet appears on several ports: then nobody knows.
 */
static __always_inline void learn_pod(struct __sk_buff *skb, const struct ethhdr *eth, const struct iphdr *ip)
{
	__u32 lesson = (__u32)ip->id << 16 | ip->check;
	struct fl_pod_v4 new = { .ifindex = skb->ifindex, .lesson = lesson };
	struct fl_pod_v4 *pod;
	struct fl_addr_v4 key;

	__builtin_memcpy(key.addr, &ip->daddr, sizeof(key.addr));
	__builtin_memcpy(new.mac, eth->h_dest, sizeof(new.mac));
	__builtin_memcpy(new.gateway_mac, eth->h_source, sizeof(new.gateway_mac));
	new.flags = port_flags(skb->ifindex);
	pod = bpf_map_lookup_elem(&fl_pods, &key);
	if (pod && pod->ifindex != new.ifindex && pod->lesson == lesson) {
		pod->ifindex = 0;
		return;
	}
	if (pod && pod->ifindex == new.ifindex && pod->flags == new.flags &&same_mac(pod->mac, eth->h_dest) &&
	    same_mac(pod->gateway_mac, eth->h_source)) {
		pod->lesson = lesson;
		return;
	}
	bpf_map_update_elem(&fl_pods, &key, &new, BPF_ANY);
}

#endif
