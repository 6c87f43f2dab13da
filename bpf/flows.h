/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Which flows may leave the kernel's path: those that the kernel has just carried unchanged.
 *
 * A direction is open when its packet was seen with the same tuple on both sides of the kernel: then no NAT
 * applied and policy let it through. TCP needs both directions, so that conntrack holds an established
 * connection. Each opening ends after fl_cfg.revalidate_ms; the next packet goes through the kernel again.
 */
#ifndef FLANNEL_FLOWS_H
#define FLANNEL_FLOWS_H

#include "parse.h"

#define FL_TX (FL_TX_ENTERED | FL_TX_LEFT)
#define FL_RX (FL_RX_ARRIVED | FL_RX_DELIVERED)

/* Packets of a flow, both directions, before it may touch fl_flows: most short connections end earlier. */
#define FL_YOUNG 12
#define FL_CELL_FULL 255

static __always_inline __u64 clock_ns(void)
{
	return fl_cfg.caps & FL_CAP_COARSE_CLOCK ? bpf_ktime_get_coarse_ns() : bpf_ktime_get_ns();
}

static __always_inline struct fl_flow_key_v4 flow_key(__u32 pod, __u32 remote, __u16 pod_port, __u16 remote_port,
						      __u8 proto)
{
	struct fl_flow_key_v4 key = {
		.pod_port = pod_port,
		.remote_port = remote_port,
		.proto = proto,
	};

	__builtin_memcpy(key.pod, &pod, sizeof(key.pod));
	__builtin_memcpy(key.remote, &remote, sizeof(key.remote));
	return key;
}

/* Key of a packet that a pod sends. */
static __always_inline struct fl_flow_key_v4 key_of_tx(const struct fl_packet *p)
{
	return flow_key(p->src, p->dst, p->sport, p->dport, p->proto);
}

/* Key of a packet that a pod gets. */
static __always_inline struct fl_flow_key_v4 key_of_rx(const struct fl_packet *p)
{
	return flow_key(p->dst, p->src, p->dport, p->sport, p->proto);
}

static __always_inline bool changes_tcp_state(const struct fl_packet *p)
{
	return p->proto == IPPROTO_TCP && p->tcp_flags & (FL_TCP_SYN | FL_TCP_FIN | FL_TCP_RST);
}

/* Forget a flow. Looked up first: deleting from an LRU takes the bucket's lock even on a miss. */
static __always_inline void end_flow(const struct fl_flow_key_v4 *key)
{
	if (bpf_map_lookup_elem(&fl_flows, key))
		bpf_map_delete_elem(&fl_flows, key);
}

/*
 * Count a packet in the sketch; true while its flow is not worth an entry. Counts halve every 2^33 ns
 * (8.6 s). Races lose a count, which only makes a flow look younger.
 */
static __always_inline bool is_young(const struct fl_flow_key_v4 *key, __u64 now)
{
	const __u64 *word = (const __u64 *)key;
	__u64 hash = (word[0] ^ (word[0] >> 29)) * 0x9e3779b97f4a7c15ULL;
	__u16 epoch = now >> 33;
	__u32 index;
	struct fl_cell *cell;
	__u16 packets;

	hash = (hash ^ (hash >> 32) ^ word[1]) * 0xbf58476d1ce4e5b9ULL;
	index = hash >> 48;
	cell = bpf_map_lookup_elem(&fl_sketch, &index);
	if (!cell)
		return true;
	packets = cell->packets;
	if (cell->epoch != epoch) {
		__u16 age = epoch - cell->epoch;

		packets = age > 8 ? 0 : packets >> age;
		cell->epoch = epoch;
		cell->packets = packets;
	}
	if (packets < FL_CELL_FULL)
		cell->packets = packets + 1;
	return packets < FL_YOUNG;
}

static __always_inline bool is_open(const struct fl_flow *flow, __u8 proto, __u32 direction, __u64 since,
				    __u64 now)
{
	__u32 needed = proto == IPPROTO_TCP ? FL_TX | FL_RX : direction;

	return (flow->bits & needed) == needed && now - since < fl_cfg.revalidate_ms * 1000000ULL;
}

/*
 * Note that a packet of `direction` starts its way through the kernel (`entered` is its first bit) and mark
 * it, so that the program at the other end looks at it. `ifindex` is the pod's veth, 0 when not known here.
 */
static __always_inline enum fl_reason learn_start(struct __sk_buff *skb, const struct fl_flow_key_v4 *key,
						  struct fl_flow *flow, __u32 direction, __u32 entered,
						  __u32 ifindex, __u64 since, __u64 now)
{
	bool expired;

	skb->mark |= fl_cfg.learn_mark;
	if (!flow) {
		struct fl_flow new = { .ifindex = ifindex, .bits = entered };

		bpf_map_update_elem(&fl_flows, key, &new, BPF_ANY);
		return FL_LEARN_NEW;
	}
	if (ifindex && flow->ifindex != ifindex) {
		flow->ifindex = ifindex;
		flow->bits = entered;
		return FL_LEARN_NEW;
	}
	expired = (flow->bits & direction) == direction && now - since >= fl_cfg.revalidate_ms * 1000000ULL;
	if (expired)
		flow->bits &= ~direction;
	flow->bits |= entered;
	return expired ? FL_LEARN_REVALIDATE : FL_LEARN_NEW;
}

#endif
