/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What is parsed of a packet, and of L4, which both families of IP share. */
#ifndef FLANNEL_PACKET_H
#define FLANNEL_PACKET_H

#include <linux/if_ether.h>
#include <linux/in.h>
#include <stdbool.h>
#include <stddef.h>

#include <bpf/bpf_endian.h>

#include "maps.h"

/*
 * Words of a packet's headers. An IP header behind an Ethernet header is aligned, MACs and what is in a VXLAN
 * tunnel are two bytes off. Where the hardware minds, they are taken by halves: make DEFINES=-DFL_STRICT_ALIGN.
 */
#ifdef FL_STRICT_ALIGN
#define FL_HALVES __attribute__((aligned(2)))
#else
#define FL_HALVES
#endif
typedef __u32 word32 FL_HALVES;
typedef __u64 word64 FL_HALVES;

#define FL_ETH_LEN 14
#define FL_L4_LEN 8 /* what UDP, ICMP echo and the ports of TCP need */
#define FL_TCP_LEN 20

enum fl_tcp_flag {
	FL_TCP_FIN = 1 << 0,
	FL_TCP_SYN = 1 << 1,
	FL_TCP_RST = 1 << 2,
	FL_TCP_ACK = 1 << 4,
};

/* An address in network byte order. */
#ifdef FL_IPV6
typedef struct {
	__u64 high;
	__u64 low;
} ip_addr;
#else
typedef __u32 ip_addr;
#endif

/* One packet between two pods. Addresses and ports in network byte order. */
struct fl_packet {
	ip_addr src;
	ip_addr dst;
	__u16 sport; /* ICMP echo: its id is the asking side's port, FL_ICMP_ECHO the other's */
	__u16 dport;
	__u16 len; /* with the IP header, host byte order */
	__u8 proto;
	__u8 tos; /* IPv6: traffic class */
	__u8 tcp_flags;
	__u8 no_flow; /* 1: ICMP that is no echo */
	__u8 headers; /* bytes of IP and L4 header: what each segment of a super-packet repeats */
};

/* What one pass through this node takes from a packet's TTL: flannel's udp relay counts as a hop of its own. */
static __always_inline __u8 ttl_cost(__u8 mode)
{
	return mode == FL_MODE_UDP ? 2 : 1;
}

/* Ones' complement sum of 16-bit words, from one of wider words. */
static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

#endif
