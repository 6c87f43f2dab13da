/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Who lives where, and who may say so. */
#ifndef FLANNEL_PEERS_H
#define FLANNEL_PEERS_H

#include "parse.h"

static __always_inline struct fl_subnet peer_key(ip_addr addr)
{
	ip_addr first = masked(addr, fl_cfg.peer_len);
	struct fl_subnet key = { .len = fl_cfg.peer_len };

	__builtin_memcpy(key.addr, &first, sizeof(key.addr));
	return key;
}

static __always_inline struct fl_peer *find_peer(ip_addr addr)
{
	struct fl_subnet key = peer_key(addr);

	return bpf_map_lookup_elem(&fl_peers, &key);
}

static __always_inline ip_addr public_ip(const struct fl_peer *peer)
{
	return load_addr(peer->public_ip);
}

static __always_inline struct fl_subnet *find_member(ip_addr addr)
{
	struct fl_addr key;

	__builtin_memcpy(key.addr, &addr, sizeof(key.addr));
	return bpf_map_lookup_elem(&fl_vteps, &key);
}

static __always_inline bool is_member(ip_addr addr)
{
	return find_member(addr);
}

/*
 * May the node at `outer` send packets from `inner`? Its own subnet's, and its own address's. Not from what is
 * somebody else's; what is nobody's, or in a subnet of another length than fl_cfg.peer_len, is the kernel's. *peer
 * is the holder of inner's subnet, or NULL; for a node's own address, that node.
 */
static __always_inline enum fl_reason check_peer_source(struct fl_peer **peer, ip_addr outer, ip_addr inner)
{
	struct fl_subnet *subnet;

	if (*peer && same_addr(public_ip(*peer), outer))
		return FL_GO_ON;
	subnet = find_member(outer);
	if (subnet && same_addr(inner, outer)) {
		*peer = find_peer(load_addr(subnet->addr));
		return *peer ? FL_GO_ON : FL_PEER_SOURCE;
	}
	if (fl_cfg.source_check == FL_CHECK_OFF)
		return *peer ? FL_GO_ON : FL_PEER_SOURCE;
	if (!subnet)
		return FL_DROP_NOT_MEMBER;
	if (*peer || in_own_subnet(inner) || same_addr(inner, own_ip()) || is_member(inner))
		return FL_DROP_PEER_SOURCE;
	return FL_PEER_SOURCE;
}

/* For tunnel packets whose inner source cannot be read. */
static __always_inline enum fl_reason check_member(ip_addr outer)
{
	return fl_cfg.source_check == FL_CHECK_OFF || is_member(outer) ? FL_GO_ON : FL_DROP_NOT_MEMBER;
}

#endif
