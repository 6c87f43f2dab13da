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

#define FL_BY_FLOW (fl_cfg.fastpath == FL_FASTPATH_FLOWS)

#define FL_TX (FL_TX_ENTERED | FL_TX_LEFT)
#define FL_RX (FL_RX_ARRIVED | FL_RX_DELIVERED)

/* Packets of one direction before it may touch fl_flows: most short connections end earlier. */
#define FL_YOUNG 12
#define FL_CELL_FULL 255

#define FL_EPOCH_SHIFT 33
#define FL_REVALIDATE_NS (fl_cfg.revalidate_ms * 1000000LL)

/* Epochs, rounded up, for which an entry of fl_flows may still open a direction: see is_open(). */
#define FL_LEARNED_EPOCHS (2 * FL_REVALIDATE_NS / (1LL << FL_EPOCH_SHIFT) + 1)

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

static __always_inline __u32 flow_hash(const struct fl_flow_key_v4 *key)
{
	const __u64 *word = (const __u64 *)key;
	__u64 hash = (word[0] ^ (word[0] >> 29)) * 0x9e3779b97f4a7c15ULL;

	return (hash ^ (hash >> 32) ^ word[1]) * 0xbf58476d1ce4e5b9ULL >> 32; /* low bits mix badly */
}

/*
 * Place of a direction's cell in the sketch: line and cell. A flow's two directions are often on different CPUs:
 * in one line, it would travel between them with every packet.
 */
static __always_inline __u32 sketch_place(__u32 hash, __u32 way)
{
	return (((__u64)hash * (FL_SKETCH_LINES / 2) >> 32) * 2 + way) * FL_LINE + hash % FL_LINE;
}

/* NULL never happens. */
static __always_inline struct fl_cell *cell_at(__u32 place)
{
	__u32 index = place / FL_LINE;
	struct fl_line *line = bpf_map_lookup_elem(&fl_sketch, &index);

	return line ? &line->cells[place % FL_LINE] : NULL;
}

/* A cell, aged. Races lose a count, which only makes a flow look younger. */
static __always_inline struct fl_cell *sketch_cell(__u32 place, __u64 now)
{
	struct fl_cell *cell = cell_at(place);
	__u8 epoch = now >> FL_EPOCH_SHIFT;

	if (cell && cell->epoch != epoch) {
		__u8 age = epoch - cell->epoch;

		cell->packets = age < 8 ? cell->packets >> age : 0;
		cell->epoch = epoch;
	}
	return cell;
}

/* Count a packet; true while its flow is not worth an entry in fl_flows. */
static __always_inline bool is_young(struct fl_cell *cell)
{
	__u8 packets = cell->packets;

	if (packets < FL_CELL_FULL)
		cell->packets = packets + 1;
	return packets < FL_YOUNG;
}

/*
 * A connection begins or ends: forget its flow, what fl_open knows of it, and on SYN its age. fl_flows is only
 * looked at where a flow with this hash was learned within FL_LEARNED_EPOCHS: an older entry is stale in any case.
 * Looked up first, because deleting from an LRU takes the bucket's lock even on a miss.
 */
static __always_inline void end_flow(struct fl_cell *cell, const struct fl_flow_key_v4 *key, __u32 place,
				     __u8 tcp_flags)
{
	struct fl_cell *other = cell_at(place ^ FL_LINE);

	if ((__u8)(cell->epoch - cell->learned) <= FL_LEARNED_EPOCHS && other) {
		if (bpf_map_lookup_elem(&fl_flows, key))
			bpf_map_delete_elem(&fl_flows, key);
		cell->ended++;
		other->ended++;
	}
	if (tcp_flags & FL_TCP_SYN)
		cell->packets = 0;
}

/* What one direction of a flow is made of. */
struct fl_direction {
	__u32 first; /* bit that this side sets */
	__u32 both;
	__u64 since; /* when the kernel last carried this direction */
	__u64 other_since;
};

static __always_inline struct fl_direction direction_tx(const struct fl_flow *flow)
{
	return (struct fl_direction){ FL_TX_ENTERED, FL_TX, flow ? flow->tx_since : 0, flow ? flow->rx_since : 0 };
}

static __always_inline struct fl_direction direction_rx(const struct fl_flow *flow)
{
	return (struct fl_direction){ FL_RX_ARRIVED, FL_RX, flow ? flow->rx_since : 0, flow ? flow->tx_since : 0 };
}

/* Signed: another CPU may have written `since` after this one read its clock. */
static __always_inline bool is_older(__u64 since, __u64 now, __s64 age)
{
	return (__s64)(now - since) >= age;
}

/* When the present opening of a direction ends, ns. TCP's other direction must have been seen lately, too. */
static __always_inline __u64 opening_end(const struct fl_direction *direction, __u8 proto)
{
	__u64 end = direction->since + FL_REVALIDATE_NS;
	__u64 other = direction->other_since + 2 * FL_REVALIDATE_NS;

	return proto == IPPROTO_TCP && (__s64)(other - end) < 0 ? other : end;
}

static __always_inline bool is_open(const struct fl_flow *flow, const struct fl_direction *direction, __u8 proto,
				    __u64 now)
{
	__u32 needed = proto == IPPROTO_TCP ? FL_TX | FL_RX : direction->both;

	return (flow->bits & needed) == needed && !is_older(opening_end(direction, proto), now, 0);
}

/* Both directions must know, for either may end the flow. */
static __always_inline void note_learned(__u32 place, __u8 epoch)
{
	struct fl_cell *this = cell_at(place), *other = cell_at(place ^ FL_LINE);

	if (this && other)
		this->learned = other->learned = epoch;
}

/*
 * Note that a packet starts its way through the kernel and mark it, so that the program at the other end looks
 * at it. `ifindex` is the pod's veth, 0 when not known here.
 */
static __always_inline enum fl_reason learn_start(struct __sk_buff *skb, const struct fl_flow_key_v4 *key,
						  struct fl_flow *flow, const struct fl_direction *direction,
						  __u32 ifindex, __u32 place, __u64 now)
{
	bool expired;

	skb->mark |= fl_cfg.learn_mark;
	note_learned(place, now >> FL_EPOCH_SHIFT);
	if (!flow) {
		struct fl_flow new = { .ifindex = ifindex, .bits = direction->first };

		bpf_map_update_elem(&fl_flows, key, &new, BPF_ANY);
		return FL_LEARN_NEW;
	}
	if (ifindex && flow->ifindex != ifindex) {
		flow->ifindex = ifindex;
		flow->bits = direction->first;
		return FL_LEARN_NEW;
	}
	expired = (flow->bits & direction->both) == direction->both &&
		  is_older(direction->since, now, FL_REVALIDATE_NS);
	if (expired)
		flow->bits &= ~direction->both;
	flow->bits |= direction->first;
	return expired ? FL_LEARN_REVALIDATE : FL_LEARN_NEW;
}

#endif
