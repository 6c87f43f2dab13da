/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * `flannel-ebpf monitor`: packets and their reasons as they happen. All of it hangs on fl_cfg.monitor, a constant:
 * while nobody watches, the verifier removes it. The daemon loads the programs anew when somebody does.
 *
 * A packet is described when a program begins with it, before it is changed, and told of when its reason is
 * counted.
 */
#ifndef FLANNEL_MONITOR_H
#define FLANNEL_MONITOR_H

#include <linux/if_ether.h>
#include <linux/in.h>

#include <bpf/bpf_endian.h>

#include "parse.h"

#define FL_MONITOR_UDP 8    /* UDP header */
#define FL_MONITOR_VXLAN 22 /* VXLAN header and inner Ethernet header */

/* The oldest goes when it is full. A queue, because kernels have it longer than ring buffers. */
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 4096);
	__uint(value_size, sizeof(struct fl_event));
} fl_events SEC(".maps");

/* The packet that a program of this CPU is at. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct fl_event);
} fl_present SEC(".maps");

/* Note the addresses of the IP header `at` bytes behind skb's outermost one, and ports or ICMP's identifier. */
static __always_inline void describe_ip(struct __sk_buff *skb, __u32 at, struct fl_event *event)
{
	__u8 ip[FL_IP_LEN];
	__u8 l4[14] = {};
	__u32 next;

	if (bpf_skb_load_bytes_relative(skb, at, ip, sizeof(ip), BPF_HDR_START_NET))
		return;
#ifdef FL_IPV6
	next = at + FL_IP_LEN;
	__builtin_memcpy(event->source, ip + 8, FL_ADDR_LEN);
	__builtin_memcpy(event->target, ip + 24, FL_ADDR_LEN);
	event->proto = ip[6];
#else
	next = at + (ip[0] & 0xf) * 4;
	__builtin_memcpy(event->source, ip + 12, FL_ADDR_LEN);
	__builtin_memcpy(event->target, ip + 16, FL_ADDR_LEN);
	event->proto = ip[9];
#endif
	if (event->proto != IPPROTO_TCP && event->proto != IPPROTO_UDP)
		return;
	if (bpf_skb_load_bytes_relative(skb, next, l4, event->proto == IPPROTO_TCP ? 14 : 4, BPF_HDR_START_NET))
		return;
	__builtin_memcpy(&event->source_port, l4, 2);
	__builtin_memcpy(&event->target_port, l4 + 2, 2);
	event->tcp_flags = event->proto == IPPROTO_TCP ? l4[13] : 0;
}

static __always_inline void watch(struct __sk_buff *skb)
{
	__u32 zero = 0, inner = FL_IP_LEN + FL_MONITOR_UDP;
	struct fl_event *event;

	if (!fl_cfg.monitor)
		return;
	event = bpf_map_lookup_elem(&fl_present, &zero);
	if (!event)
		return;
	__builtin_memset(event, 0, sizeof(*event));
	event->ifindex = skb->ifindex;
	event->len = skb->len;
	if (skb->protocol != FL_ETHERTYPE)
		return;
	describe_ip(skb, 0, event);
	if (event->proto != IPPROTO_UDP || event->target_port != bpf_htons(fl_cfg.port) || !fl_cfg.port)
		return;
	__builtin_memcpy(event->outer, event->source, FL_ADDR_LEN);
	event->source_port = event->target_port = 0;
	describe_ip(skb, fl_cfg.backend == FL_MODE_UDP ? inner : inner + FL_MONITOR_VXLAN, event);
}

static __always_inline void tell(enum fl_hook hook, enum fl_reason reason)
{
	__u32 zero = 0;
	struct fl_event *event;

	if (!fl_cfg.monitor || bpf_get_prandom_u32() % fl_cfg.monitor)
		return;
	event = bpf_map_lookup_elem(&fl_present, &zero);
	if (!event)
		return;
	event->at = bpf_ktime_get_ns();
	event->hook = hook;
	event->reason = reason;
	bpf_map_push_elem(&fl_events, event, BPF_EXIST);
}

#endif
