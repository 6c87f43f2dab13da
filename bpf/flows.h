/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Flows: one connection each, seen from the pod, and what the kernel was seen to carry of it.
 *
 * A direction is open for fl_cfg.revalidate_ms after the kernel carried one of its packets unchanged: then no NAT
 * applies, and policy lets it through. TCP needs both directions, and an ACK after the SYN-ACK, so that conntrack
 * holds an established connection. After that the next packet goes through the kernel again.
 */
#ifndef FLANNEL_FLOWS_H
#define FLANNEL_FLOWS_H

#include "node.h"
#include "parse.h"

#define FL_BY_FLOW (fl_cfg.fastpath >= FL_FASTPATH_FLOWS)

#define FL_WAY_OUT 0 /* from pods */
#define FL_WAY_IN 1

/* Packets of one direction before it may touch fl_flows, where no handshake taught it. */
#define FL_YOUNG 12
#define FL_CELL_FULL 127
#define FL_CELL_OPEN 128 /* in fl_cell.packets */

/* Of the sketch. A test's is longer: on a busy machine minutes pass between two of its packets. */
#ifndef FL_EPOCH_SHIFT
#define FL_EPOCH_SHIFT 31
#endif
#define FL_TIME_SHIFT 20 /* of a word in fl_flow */
#define FL_TICK 16	 /* in such units: more than a tick of the coarse clock */
#define FL_ESTABLISHED (1ULL << 40)
#define FL_TIME_MASK (FL_ESTABLISHED - 1)

#define FL_REVALIDATE_NS (fl_cfg.revalidate_ms * 1000000LL)

/* Epochs, rounded up, for which an entry of fl_flows may still open a direction: see opening_end(). */
#define FL_LEARNED_EPOCHS (2 * FL_REVALIDATE_NS / (1LL << FL_EPOCH_SHIFT) + 2)

/*
 * conntrack takes UDP for a stream, which lives longer, when it sees a packet 2 s after the first: so the first
 * opening of a flow ends then.
 */
#define FL_STREAM_NS 2200000000ULL

/* One direction of a flow, as a packet in hand meets it. */
struct fl_direction {
	struct fl_flow_key key;
	struct fl_cell *cell;
	__u64 now; /* ns */
	__u32 hash;
	__u32 place;   /* of its cell in the sketch */
	__u32 ifindex; /* pod's veth, 0: not known here */
	__u8 way;
	__u8 ended; /* fl_cell.ended before fl_flows was looked at */
};

static __always_inline struct fl_flow_key flow_key(ip_addr pod, ip_addr remote, __u16 pod_port, __u16 remote_port,
						   __u8 proto)
{
	struct fl_flow_key key = {
		.pod_port = pod_port,
		.remote_port = remote_port,
		.proto = proto,
	};

	__builtin_memcpy(key.pod, &pod, sizeof(key.pod));
	__builtin_memcpy(key.remote, &remote, sizeof(key.remote));
	return key;
}

/* Key of a packet on its way from or to a pod. */
static __always_inline struct fl_flow_key key_of(const struct fl_packet *p, __u8 way)
{
	if (way == FL_WAY_OUT)
		return flow_key(p->src, p->dst, p->sport, p->dport, p->proto);
	return flow_key(p->dst, p->src, p->dport, p->sport, p->proto);
}

#define FL_KEY_WORDS ((int)sizeof(struct fl_flow_key) / 8)

static __always_inline bool same_words(const void *a, const void *b, int count)
{
	const __u64 *left = a, *right = b;

	for (int i = 0; i < count; i++) {
		if (left[i] != right[i])
			return false;
	}
	return true;
}

static __always_inline bool same_key(const struct fl_flow_key *a, const struct fl_flow_key *b)
{
	return same_words(a, b, FL_KEY_WORDS);
}

static __always_inline __u32 flow_hash(const struct fl_flow_key *key)
{
	const __u64 *word = (const __u64 *)key;
	__u64 hash = word[0] ^ hash_key();

#pragma unroll
	for (int i = 1; i < FL_KEY_WORDS - 1; i++)
		hash = ((hash ^ (hash >> 29)) * 0x9e3779b97f4a7c15ULL) ^ word[i];
	hash = (hash ^ (hash >> 29)) * 0x9e3779b97f4a7c15ULL;
	return (hash ^ (hash >> 32) ^ word[FL_KEY_WORDS - 1]) * 0xbf58476d1ce4e5b9ULL >>
	       32; /* low bits mix badly */
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

	if (!line)
		return NULL;
	/* LLVM 16 and newer would add to the pointer before it was checked, which Linux 5.10 refuses */
	asm volatile("" : "+r"(line));
	return &line->cells[place % FL_LINE];
}

/* Fill in all but the veth; false never happens. */
static __always_inline bool find_direction(struct fl_direction *d, const struct fl_packet *p, __u8 way, __u64 now)
{
	__u8 epoch = now >> FL_EPOCH_SHIFT;

	d->key = key_of(p, way);
	d->hash = flow_hash(&d->key);
	d->place = sketch_place(d->hash, way);
	d->cell = cell_at(d->place);
	d->now = now;
	d->ifindex = 0;
	d->way = way;
	if (!d->cell)
		return false;
	/* Races lose a count, which only makes a flow look younger. */
	if (d->cell->epoch != epoch) {
		__u8 age = epoch - d->cell->epoch;

		__u8 packets = d->cell->packets;

		d->cell->packets = age < 8 ? (packets & FL_CELL_OPEN) | (packets & FL_CELL_FULL) >> age : 0;
		d->cell->epoch = epoch;
	}
	d->ended = d->cell->ended;
	return true;
}

/* Count a packet; true while its flow is not worth an entry in fl_flows. */
static __always_inline bool is_young(struct fl_cell *cell)
{
	__u8 packets = cell->packets & FL_CELL_FULL;

	if (packets < FL_CELL_FULL)
		cell->packets++;
	return packets < FL_YOUNG;
}

/* May fl_flows hold anything that counts of a flow with this hash? */
static __always_inline bool was_learned(const struct fl_cell *cell)
{
	return (__u8)(cell->epoch - cell->learned) <= FL_LEARNED_EPOCHS;
}

/*
 * Both directions must know, for either may end the flow. What one knows in this epoch the other does: its line is
 * another CPU's, and not touched for nothing.
 */
static __always_inline void note_learned(__u32 place, __u64 now)
{
	struct fl_cell *this = cell_at(place), *other = cell_at(place ^ FL_LINE);
	__u8 epoch = now >> FL_EPOCH_SHIFT;

	if (this && other && this->learned != epoch)
		this->learned = other->learned = epoch;
}

/*
 * Forget a flow, and void what fl_open knows of it. Its cells grow young again, lest what follows its end counts
 * as a flow that is worth an entry. Looked up first, because deleting from an LRU takes the bucket's lock even on
 * a miss.
 */
static __always_inline void end_flow(const struct fl_flow_key *key, __u32 place)
{
	struct fl_cell *this = cell_at(place), *other = cell_at(place ^ FL_LINE);

	if (!this || !other)
		return;
	if (bpf_map_lookup_elem(&fl_flows, key))
		bpf_map_delete_elem(&fl_flows, key);
	this->ended++;
	other->ended++;
	this->packets = other->packets = 0;
}

/* A word of fl_flow: now, and whose. */
static __always_inline __u64 flow_word(__u32 hash, __u64 now)
{
	return (__u64)(hash >> 9) << 41 | (now >> FL_TIME_SHIFT & FL_TIME_MASK);
}

static __always_inline bool is_of(__u64 word, __u32 hash)
{
	return word >> 41 == hash >> 9;
}

static __always_inline __u64 time_of(__u64 word)
{
	return (word & FL_TIME_MASK) << FL_TIME_SHIFT;
}

static __always_inline __u64 *word_of(struct fl_flow *flow, __u8 way)
{
	return way == FL_WAY_OUT ? &flow->tx : &flow->rx;
}

/* Signed: another CPU may have written the time after this one read its clock. */
static __always_inline bool is_past(__u64 time, __u64 now)
{
	return (__s64)(now - time) >= 0;
}

/*
 * Does this word say that the kernel carried something of its direction within two openings? Its time may be ahead
 * of `now` by a tick, when another CPU wrote it; times that wrap count as long ago.
 */
static __always_inline bool is_fresh(__u64 word, const struct fl_direction *d)
{
	__u64 age = ((d->now >> FL_TIME_SHIFT) - word + FL_TICK) & FL_TIME_MASK;

	return is_of(word, d->hash) && age < (2 * FL_REVALIDATE_NS >> FL_TIME_SHIFT) + FL_TICK;
}

/* When the present opening of this direction ended or ends, ns; 0: there is none. */
static __always_inline __u64 opening_end(struct fl_flow *flow, const struct fl_direction *d)
{
	__u64 own = *word_of(flow, d->way), other = *word_of(flow, !d->way);
	__u64 end = time_of(own) + FL_REVALIDATE_NS;

	if (!is_fresh(own, d))
		return 0;
	if (d->key.proto == IPPROTO_TCP) {
		__u64 other_end = time_of(other) + 2 * FL_REVALIDATE_NS;

		if (!is_fresh(other, d) || !((own | other) & FL_ESTABLISHED))
			return 0;
		return other_end < end ? other_end : end;
	}
	if (d->key.proto == IPPROTO_UDP) {
		__u32 age = (__u32)(own & FL_TIME_MASK) - flow->born;
		__u64 stream = FL_STREAM_NS >> FL_TIME_SHIFT;

		if (age < stream && ((stream - age) << FL_TIME_SHIFT) < FL_REVALIDATE_NS)
			end = time_of(own) + ((stream - age) << FL_TIME_SHIFT);
	}
	return end;
}

/*
 * Note that the kernel carried a packet of this direction unchanged. `tcp_flags` are its: after a SYN alone, what
 * is known of this tuple was about an earlier connection.
 */
static __always_inline void note_carried(const struct fl_direction *d, __u8 tcp_flags)
{
	bool begins = (tcp_flags & (FL_TCP_SYN | FL_TCP_ACK)) == FL_TCP_SYN;
	struct fl_flow *flow = begins ? NULL : bpf_map_lookup_elem(&fl_flows, &d->key);
	__u64 word = flow_word(d->hash, d->now);

	note_learned(d->place, d->now);
	if (!flow || flow->ifindex != d->ifindex || !(is_fresh(flow->tx, d) || is_fresh(flow->rx, d))) {
		struct fl_flow new = { .ifindex = d->ifindex, .born = d->now >> FL_TIME_SHIFT };

		*word_of(&new, d->way) = word;
		bpf_map_update_elem(&fl_flows, &d->key, &new, BPF_ANY);
		return;
	}
	if (!(tcp_flags & FL_TCP_SYN) && is_fresh(*word_of(flow, !d->way), d))
		word |= FL_ESTABLISHED;
	*word_of(flow, d->way) = word;
}

#endif
