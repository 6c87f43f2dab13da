/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * fl_open: directions that were found open in fl_flows lately, so that their packets need no look there. Among
 * thousands of flows that look costs three cold cache lines, this one costs one.
 *
 * An entry ends with the opening that it was made from. It is void before that when a connection with its hash
 * began or ended, which fl_cell.ended counts: the count is read before fl_flows is, so an end in between voids it
 * too.
 */
#ifndef FLANNEL_OPEN_H
#define FLANNEL_OPEN_H

#include "maps.h"

#define FL_OPEN_SHIFT 20

/* What a packet must match to be of an open flow. */
struct fl_opening {
	const struct fl_flow_key_v4 *key;
	__u32 hash;
	__u32 ifindex; /* pod's veth */
	__u8 way;
	__u8 ended;
};

static __always_inline struct fl_open_set *open_set(const struct fl_opening *want)
{
	__u32 index = want->way * FL_OPEN_SETS + want->hash % FL_OPEN_SETS;

	return bpf_map_lookup_elem(&fl_open, &index);
}

/* Two CPUs that write one entry may mix its words: the hash is then not that of the key. */
static __always_inline bool is_entry(const struct fl_open *open, const struct fl_opening *want)
{
	const __u64 *a = (const __u64 *)&open->key, *b = (const __u64 *)want->key;

	return open->hash == want->hash && a[0] == b[0] && a[1] == b[1];
}

/* The entry of exactly this key, valid or not, or NULL. */
static __always_inline struct fl_open *find_entry(struct fl_open_set *set, const struct fl_opening *want)
{
	if (is_entry(&set->ways[0], want))
		return &set->ways[0];
	return is_entry(&set->ways[1], want) ? &set->ways[1] : NULL;
}

static __always_inline bool is_known_open(const struct fl_opening *want, __u64 now)
{
	struct fl_open_set *set = open_set(want);
	struct fl_open *open = set ? find_entry(set, want) : NULL;

	return open && open->ended == want->ended && open->ifindex == want->ifindex &&
	       (__s32)(open->until - (__u32)(now >> FL_OPEN_SHIFT)) > 0;
}

/* Keep in mind that this direction is open until then (ns), in place of itself or of what ends first. */
static __always_inline void note_open(const struct fl_opening *found, __u64 until)
{
	struct fl_open_set *set = open_set(found);
	struct fl_open *open;

	if (!set)
		return;
	open = find_entry(set, found);
	if (!open)
		open = (__s32)(set->ways[0].until - set->ways[1].until) <= 0 ? &set->ways[0] : &set->ways[1];
	open->key = *found->key;
	open->hash = found->hash;
	open->ifindex = found->ifindex;
	open->ended = found->ended;
	open->until = until >> FL_OPEN_SHIFT;
}

#endif
