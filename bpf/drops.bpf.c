/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * `flannel-ebpf monitor`: packets of a network that the kernel itself drops, where and for what reason. Loaded by
 * whoever watches, and gone with him; the daemon knows nothing of it.
 *
 * The tracepoint sees every namespace of the host: only drops at devices of the watcher's own are told. Kernel
 * structures are named by what is read of them; libbpf finds where that lies from the running kernel's BTF.
 */
#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <stdbool.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define CORE __attribute__((preserve_access_index))

struct ns_common {
	unsigned int inum;
} CORE;

struct net {
	struct ns_common ns;
} CORE;

typedef struct {
	struct net *net;
} CORE possible_net_t;

struct net_device {
	possible_net_t nd_net;
	int ifindex;
} CORE;

struct sk_buff {
	struct net_device *dev;
	unsigned char *head;
	unsigned int len;
	__u16 network_header;
	__be16 protocol;
} CORE;

/* Which packets are told of: with an address in one of the networks, or to the tunnel's port. */
struct fl_watched {
	__u8 network[16];
	__u8 mask[16];
	__u8 network6[16];
	__u8 mask6[16];
	__u32 netns; /* inode of the namespace */
	__u16 port;  /* host byte order; 0: none */
	__u16 pad;
};

/* Addresses of IPv4 are the first four bytes; ports are in network byte order. */
struct fl_drop {
	__u64 at; /* ns, CLOCK_MONOTONIC */
	__u64 location;
	__u32 reason; /* enum skb_drop_reason of this kernel */
	__u32 ifindex;
	__u32 len;
	__u8 source[16];
	__u8 target[16];
	__be16 source_port;
	__be16 target_port;
	__u8 version;
	__u8 proto;
	__u8 pad[6];
};

const volatile struct fl_watched fl_watched = {};

/* The oldest goes when it is full. */
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 4096);
	__uint(value_size, sizeof(struct fl_drop));
} fl_drops SEC(".maps");

static __always_inline bool is_in(const __u8 *address, const volatile __u8 *network, const volatile __u8 *mask,
				  int octets)
{
	for (int i = 0; i < octets; i++)
		if ((address[i] & mask[i]) != network[i])
			return false;
	return mask[0]; /* no network has length 0: that is one which is not there */
}

/* Read the ports behind an IP header. */
static __always_inline void note_ports(struct fl_drop *drop, const void *l4)
{
	__be16 ports[2];

	if (drop->proto != IPPROTO_TCP && drop->proto != IPPROTO_UDP)
		return;
	if (bpf_probe_read_kernel(ports, sizeof(ports), l4))
		return;
	drop->source_port = ports[0];
	drop->target_port = ports[1];
}

static __always_inline bool is_watched4(struct fl_drop *drop, const unsigned char *at)
{
	struct iphdr ip;

	if (bpf_probe_read_kernel(&ip, sizeof(ip), at) || ip.version != 4)
		return false;
	drop->version = 4;
	drop->proto = ip.protocol;
	__builtin_memcpy(drop->source, &ip.saddr, 4);
	__builtin_memcpy(drop->target, &ip.daddr, 4);
	if (!(ip.frag_off & bpf_htons(0x1fff)))
		note_ports(drop, at + ip.ihl * 4);
	return is_in(drop->source, fl_watched.network, fl_watched.mask, 4) ||
	       is_in(drop->target, fl_watched.network, fl_watched.mask, 4);
}

static __always_inline bool is_watched6(struct fl_drop *drop, const unsigned char *at)
{
	struct ipv6hdr ip;

	if (bpf_probe_read_kernel(&ip, sizeof(ip), at) || ip.version != 6)
		return false;
	drop->version = 6;
	drop->proto = ip.nexthdr;
	__builtin_memcpy(drop->source, &ip.saddr, 16);
	__builtin_memcpy(drop->target, &ip.daddr, 16);
	note_ports(drop, at + sizeof(ip));
	return is_in(drop->source, fl_watched.network6, fl_watched.mask6, 16) ||
	       is_in(drop->target, fl_watched.network6, fl_watched.mask6, 16);
}

/* Arguments since Linux 5.17: the packet, the place, the reason (include/trace/events/skb.h). */
SEC("tp_btf/kfree_skb")
int fl_kfree_skb(__u64 *ctx)
{
	struct sk_buff *skb = (void *)ctx[0];
	struct net_device *dev = skb->dev;
	struct fl_drop drop = {};
	const unsigned char *at;
	bool watched;

	if (!dev || dev->nd_net.net->ns.inum != fl_watched.netns)
		return 0;
	at = skb->head + skb->network_header;
	watched = skb->protocol == bpf_htons(0x86dd) ? is_watched6(&drop, at) : is_watched4(&drop, at);
	if (drop.proto == IPPROTO_UDP && drop.target_port && drop.target_port == bpf_htons(fl_watched.port))
		watched = true;
	if (!watched)
		return 0;
	drop.at = bpf_ktime_get_ns();
	drop.location = ctx[1];
	drop.reason = ctx[2];
	drop.ifindex = dev->ifindex;
	drop.len = skb->len;
	bpf_map_push_elem(&fl_drops, &drop, BPF_EXIST);
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
