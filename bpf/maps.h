/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Every map and the constants. The loader pins maps by name, so both objects share those they both define. */
#ifndef FLANNEL_MAPS_H
#define FLANNEL_MAPS_H

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#include "flannel.h"

/*
 * Even lines are for packets from pods, odd ones for packets to pods. In all less than the 32 kB up to which the
 * kernel takes a map from its direct mapping: in vmalloc's small pages a look at the sketch costs as much as
 * the rest of the program.
 */
#define FL_SKETCH_LINES 500
#define FL_WAY_OUT 0 /* from pods */
#define FL_WAY_IN 1

/* For 10,000 flows at once with few collisions. */
#define FL_OPEN_SETS 16384 /* of each way */

/* Filled in by the loader before load. */
const volatile struct fl_config fl_cfg = {};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct fl_subnet);
	__type(value, struct fl_peer);
} fl_peers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct fl_addr);
	__type(value, struct fl_subnet);
} fl_vteps SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, FL_REASONS);
	__type(key, __u32);
	__type(value, struct fl_count);
} fl_reasons SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct fl_node);
} fl_node SEC(".maps");

#ifndef FLANNEL_XDP
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct fl_addr);
	__type(value, struct fl_pod);
} fl_pods SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct fl_port);
} fl_ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct fl_subnet);
	__type(value, struct fl_level);
} fl_levels SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct fl_proof);
} fl_proof SEC(".maps");

/* A scan of all addresses pushes out what is asked for once, and hardly what is asked for again and again. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct fl_subnet);
	__type(value, struct fl_asked);
} fl_asked SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 262144);
	__type(key, struct fl_flow_key);
	__type(value, struct fl_flow);
} fl_flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct fl_book);
} fl_lessons SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FL_SKETCH_LINES);
	__type(key, __u32);
	__type(value, struct fl_line);
} fl_sketch SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2 * FL_OPEN_SETS);
	__type(key, __u32);
	__type(value, struct fl_open_set);
} fl_open SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 8192);
	__type(key, __u32);
	__type(value, struct fl_traffic);
} fl_peer_stats SEC(".maps");
#endif

#endif
