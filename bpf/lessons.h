/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Did the kernel carry this very packet unchanged? A program at one end of the kernel's way writes down what a
 * packet looks like, the one at the other end compares.
 *
 * Both must see one and the same packet: two of one tuple may belong to two connections, of which one is
 * translated. So the packet carries a ticket in skb->tc_index, the number of its lesson in this CPU's book.
 * Neither netfilter nor routing reads that field, and bridge, routing and vxlan leave it alone. A packet that
 * changes CPUs, or that waits somewhere, finds its lesson gone and teaches nothing.
 */
#ifndef FLANNEL_LESSONS_H
#define FLANNEL_LESSONS_H

#include "flows.h"

/*
 * A test run can neither set nor show tc_index: tests compile this with another field of the same use.
 */
#ifndef FL_TICKET
#define FL_TICKET tc_index
#endif

#define FL_TICKET_BPF 0x8000	/* BPF did the outer leg; in addition to a lesson's number or 0 */
#define FL_TICKET_KERNEL 0x7fff /* the kernel shall do the outer leg; no lesson */
#define FL_TICKET_DONE 0xffff	/* BPF carried it all the way; udp alone must know */
#define FL_TICKET_LAST 0x7ffe	/* highest number of a lesson */

/*
 * Time from one end to the other, 2^20 ns: a clock's tick or two. What takes longer was queued. A test takes its
 * time.
 */
#ifndef FL_LESSON_TIME
#define FL_LESSON_TIME 20
#endif

/*
 * Write down how a packet looks: `ip` in the frame, `p` what was parsed of it, `ttl` what it will have at the far
 * end. False when its TCP header is not readable, which parse_l4() has seen before.
 */
static __always_inline bool describe(struct fl_lesson *lesson, struct __sk_buff *skb, const ip_header *ip,
				     const void *end, const struct fl_packet *p, __u8 ttl, __u8 way)
{
	const word32 *l4 = (const void *)(ip + 1);

	lesson->key = key_of(p, way);
	lesson->seq = lesson->ack = 0;
	if (p->proto == IPPROTO_TCP) {
		if ((const void *)(l4 + 3) > end)
			return false;
		lesson->seq = l4[1];
		lesson->ack = l4[2];
	}
	lesson->id = id_of(ip);
	lesson->len = segment_len(skb, p);
	lesson->tos = p->tos;
	lesson->ttl = ttl;
	lesson->way = way;
	lesson->pad = 0;
	return true;
}

/* Start a lesson with this packet. `ttl_taken`: what the kernel will take from its TTL. */
static __always_inline void start_lesson(struct __sk_buff *skb, const ip_header *ip, const void *end,
					 const struct fl_packet *p, __u8 ttl_taken, const struct fl_direction *d)
{
	struct fl_lesson *lesson;
	struct fl_book *book;
	__u32 zero = 0;

	book = bpf_map_lookup_elem(&fl_lessons, &zero);
	if (!book)
		return;
	book->last = book->last < FL_TICKET_LAST ? book->last + 1 : 1;
	lesson = &book->lessons[book->last % FL_LESSONS];
	if (!describe(lesson, skb, ip, end, p, ttl_of(ip) - ttl_taken, d->way))
		return;
	lesson->number = book->last;
	lesson->ifindex = d->ifindex;
	lesson->hash = d->hash;
	lesson->time = d->now >> FL_TIME_SHIFT;
	skb->FL_TICKET = book->last;
}

/* The lesson of this ticket, or NULL. It is given once: a second packet with this ticket is a copy. */
static __always_inline struct fl_lesson *take_lesson(__u32 ticket, __u64 now)
{
	struct fl_lesson *lesson;
	struct fl_book *book;
	__u32 zero = 0;

	book = bpf_map_lookup_elem(&fl_lessons, &zero);
	if (!book)
		return NULL;
	lesson = &book->lessons[ticket % FL_LESSONS];
	if (lesson->number != ticket)
		return NULL;
	lesson->number = 0;
	return (__u32)(now >> FL_TIME_SHIFT) - lesson->time < FL_LESSON_TIME ? lesson : NULL;
}

/* Is the packet in hand the one that this lesson began with, unchanged? */
static __always_inline bool same_packet(const struct fl_lesson *a, const struct fl_lesson *b)
{
	return same_words(a, b, offsetof(struct fl_lesson, number) / 8);
}

/* What a lesson taught: this tuple is carried as it is, or another at the far end: then neither may be open. */
static __always_inline enum fl_reason end_lesson(const struct fl_lesson *lesson, const struct fl_lesson *here,
						 __u8 tcp_flags, __u32 ifindex, __u64 now)
{
	struct fl_direction d = {
		.key = lesson->key,
		.now = now,
		.hash = lesson->hash,
		.place = sketch_place(lesson->hash, lesson->way),
		.ifindex = ifindex,
		.way = lesson->way,
	};
	struct fl_cell *cell;

	if (same_packet(lesson, here)) {
		note_carried(&d, tcp_flags);
		return d.way == FL_WAY_OUT ? FL_LEARN_LEFT : FL_LEARN_DELIVERED;
	}
	if (!same_key(&lesson->key, &here->key)) {
		end_flow(&d.key, d.place);
		end_flow(&here->key, sketch_place(flow_hash(&here->key), d.way));
	}
	cell = cell_at(d.place);
	if (cell)
		cell->packets = 0; /* a flow that is translated need not try with every packet */
	return FL_LEARN_CHANGED;
}

#endif
