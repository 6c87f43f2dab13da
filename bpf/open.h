/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * fl_open: directions that were found open in fl_flows lately, so that their packets need no look there. Among
 * thousands of flows that look costs three cold cache lines, this one costs one. A short connection's flow is
 * still warm from its handshake, and a place here would be cold: only flows that last have one, and cells tell
 * whether any of theirs does.
 *
 * An entry ends with the opening that it was made from. It is void before that when a connection with its hash
 * began or ended, which fl_cell.ended counts: the count is read before fl_flows is, so an end in between voids it
 * too.
 */
#ifndef FLANNEL_OPEN_H
#define FLANNEL_OPEN_H

#include "flows.h"

#define FL_LASTING 64 /* 2^20 ns: age from which on a flow may have a place here */

static __always_inline struct fl_open_set *open_set(const struct fl_direction *d)
{
	__u32 index = d->way * FL_OPEN_SETS + d->hash % FL_OPEN_SETS;

	return bpf_map_lookup_elem(&fl_open, &index);
}

/* Two CPUs that write one entry may mix its words: the hash is then not that of the key. */
static __always_inline bool is_entry(const struct fl_open *open, const struct fl_direction *d)
{
	return open->hash == d->hash && same_key(&open->key, &d->key);
}

/* The entry of exactly this direction, valid or not, or NULL. */
static __always_inline struct fl_open *find_entry(struct fl_open_set *set, const struct fl_direction *d)
{
	if (is_entry(&set->ways[0], d))
		return &set->ways[0];
	return is_entry(&set->ways[FL_OPEN_WAYS - 1], d) ? &set->ways[FL_OPEN_WAYS - 1] : NULL;
}

/* Is this entry still good? No entry lasts longer than an opening: what seems to is one of times that wrapped. */
static __always_inline bool is_good(const struct fl_open *open, __u64 now)
{
	__u64 left = (open->until - (now >> FL_TIME_SHIFT) - 1) & FL_TIME_MASK;

	return left <= FL_REVALIDATE_NS >> FL_TIME_SHIFT;
}

static __always_inline bool is_known_open(const struct fl_direction *d)
{
	struct fl_open_set *set = d->cell->packets & FL_CELL_OPEN ? open_set(d) : NULL;
	struct fl_open *open = set ? find_entry(set, d) : NULL;

	return open && open->until >> 40 == d->ended && open->ifindex == d->ifindex && is_good(open, d->now);
}

/* Keep in mind that this direction is open until then (ns), in place of itself or of what is of no use. */
static __always_inline void note_open(const struct fl_direction *d, const struct fl_flow *flow, __u64 until)
{
	struct fl_open_set *set;
	struct fl_open *open;

	if ((__u32)(d->now >> FL_TIME_SHIFT) - flow->born < FL_LASTING)
		return;
	set = open_set(d);
	if (!set)
		return;
	d->cell->packets |= FL_CELL_OPEN;
	open = find_entry(set, d);
	if (!open)
		open = &set->ways[FL_OPEN_WAYS > 1 && is_good(&set->ways[0], d->now)];
	open->key = d->key;
	open->hash = d->hash;
	open->ifindex = d->ifindex;
	open->until = (__u64)d->ended << 40 | until >> FL_TIME_SHIFT;
}

#endif
