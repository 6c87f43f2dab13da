/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the daemon keeps telling: that it lives, and the key of hashes. */
#ifndef FLANNEL_NODE_H
#define FLANNEL_NODE_H

#include <stdbool.h>

#include "maps.h"

/* Nanoseconds, CLOCK_MONOTONIC; the coarse clock is a tick behind at most, and costs a fifth. */
static __always_inline __u64 clock_ns(void)
{
	return fl_cfg.caps & FL_CAP_COARSE_CLOCK ? bpf_ktime_get_coarse_ns() : bpf_ktime_get_ns();
}

/* NULL never happens. */
static __always_inline const struct fl_node *this_node(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&fl_node, &zero);
}

/*
 * Whether the daemon has been silent for too long: somebody else may have taken over this node's overlay, and
 * programs that nobody keeps in line must not stand in his way.
 */
static __always_inline bool stands_aside(__u64 now)
{
	const struct fl_node *node = this_node();

	return !node || now >= node->until;
}

/* The overlay's device: it may be made anew, and the programs stay. */
static __always_inline __u32 overlay(void)
{
	const struct fl_node *node = this_node();

	return node ? node->overlay : 0;
}

static __always_inline __u64 hash_key(void)
{
	const struct fl_node *node = this_node();

	return node ? node->hash_key : 0;
}

#endif
