/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The contract between the BPF programs and the control plane: every map key, map value, constant and
 * reason, and nothing else. flannel_ebpf/contract/ mirrors it; a test and every start of the daemon compare
 * the mirror with the compiled object's BTF.
 *
 * Addresses are bytes in wire order, so that `bpftool map dump` prints them readably. Ports and counters
 * are host byte order unless a comment says otherwise. All padding is written out.
 */
#ifndef FLANNEL_H
#define FLANNEL_H

#include <linux/types.h>

/*
 * Every source is compiled once for each family of IP. What a network of one family has, programs, maps and
 * everything in them, knows nothing of the other one; only the length of an address is another.
 */
#ifdef FL_IPV6
#define FL_ADDR_LEN 16
#else
#define FL_ADDR_LEN 4
#endif

/* How packets reach a peer. */
enum fl_mode {
	FL_MODE_NONE = 0, /* kernel path only */
	FL_MODE_VXLAN = 1,
	FL_MODE_DIRECT = 2, /* host-gw, or vxlan's DirectRouting: no outer header */
	FL_MODE_UDP = 3,    /* flannel's udp backend: bare IPv4 packet in UDP */
};

/* Which packets may leave the kernel's path. */
enum fl_fastpath {
	FL_FASTPATH_OFF = 0,
	FL_FASTPATH_SUBNETS = 1, /* every packet between pods */
	FL_FASTPATH_FLOWS = 2,	 /* flows that the kernel has just carried unchanged */
	FL_FASTPATH_AUTO = 3,	 /* every packet of FL_POD_STATELESS, and flows of all other pods */
};

/* What to do with packets whose source is not who may send it. */
enum fl_check {
	FL_CHECK_OFF = 0,
	FL_CHECK_COUNT = 1,
	FL_CHECK_DROP = 2,
};

/* Building blocks that the running kernel has (fl_config.caps). */
enum fl_cap {
	FL_CAP_REDIRECT_NEIGH = 1 << 0,
	FL_CAP_REDIRECT_PEER = 1 << 1,
	FL_CAP_ENCAP_L2_ETH = 1 << 2, /* BPF_F_ADJ_ROOM_ENCAP_L2_ETH: GSO packets may be encapsulated */
	FL_CAP_DECAP_L4_UDP = 1 << 3, /* BPF_F_ADJ_ROOM_DECAP_L4_UDP: tunnel state of aggregates is cleared */
	FL_CAP_CSUM_LEVEL = 1 << 4,   /* bpf_csum_level and BPF_F_ADJ_ROOM_NO_CSUM_RESET */
	FL_CAP_COARSE_CLOCK = 1 << 5, /* bpf_ktime_get_coarse_ns */
};

/* Set once before load, read-only afterwards: the verifier removes branches they rule out. */
struct fl_config {
	__u8 public_ip[FL_ADDR_LEN];
	__u8 network[FL_ADDR_LEN];
	__u8 network_mask[FL_ADDR_LEN];
	__u8 subnet[FL_ADDR_LEN];
	__u8 subnet_mask[FL_ADDR_LEN];
	__u8 vtep_mac[6];
	__u16 port;	   /* tunnel's UDP port: 8472 vxlan, 8285 udp */
	__u16 sport_min;   /* vxlan's source ports: the first one, of net.ipv4.ip_local_port_range */
	__u16 sport_count; /* and how many */
	__u32 vni;
	__u32 uplink;	/* ifindex */
	__u32 peer_len; /* prefix length of every subnet in fl_peers; members with another are in fl_vteps alone */
	__u32 revalidate_ms;
	enum fl_cap caps; /* bits */
	enum fl_mode backend;
	enum fl_fastpath fastpath;
	enum fl_check source_check;
	__u8 direct_routing;  /* 1: some peers of a vxlan network are FL_MODE_DIRECT */
	__u8 ttl;	      /* of outer headers: net.ipv4.ip_default_ttl */
	__u8 uplink_finishes; /* 1: what leaves the uplink is cut to size and has its checksums */
	__u8 learning;	      /* 1: the vxlan device learns from what it receives itself */
	__u8 outer_checksum;  /* 1: of vxlan's UDP over IPv4, where it can be told; over IPv6 always */
	__u8 pad[3];
	__u32 monitor; /* n: tell of one packet in n (fl_events); 0: nobody watches */
};

/* fl_node, one entry, written by the daemon. */
struct fl_node {
	__u64 hash_key; /* keeps pods from choosing whom they share a cell of the sketch with */
	__u64 until;   /* ns, CLOCK_MONOTONIC: with no sign of the daemon until then, every packet is left alone */
	__u32 overlay; /* ifindex of flannel.<VNI> or of the udp backend's TUN, 0: none */
	__u8 pad[4];
};

/* fl_peers: remote subnet -> how to get there. The same key serves a hash and an LPM trie. */
struct fl_subnet {
	__u32 len; /* prefix length in bits */
	__u8 addr[FL_ADDR_LEN];
};

enum fl_peer_flag {
	FL_PEER_ON_LINK = 1 << 0, /* public_ip is a neighbour on the uplink; otherwise the kernel routes */
	FL_PEER_BPF = 1 << 1, /* udp: its programs take packets whose checksum or cutting is still to be done */
};

struct fl_peer {
	__u8 public_ip[FL_ADDR_LEN];
	__u8 vtep_mac[6]; /* zero unless mode is FL_MODE_VXLAN */
	__u8 mode;	  /* enum fl_mode */
	__u8 flags;	  /* enum fl_peer_flag bits */
	__u16 mtu;	  /* largest outer IPv4 packet on the way to public_ip */
	__u16 slot;	  /* index of this peer's counters in fl_peer_stats */
#ifdef FL_IPV6
	__u8 pad6[4];
#endif
	/* What follows is the programs': the outer leg as the kernel takes it, see outer.h. */
	__u64 tx_until; /* ns, CLOCK_MONOTONIC */
	__u64 rx_until;
	__u8 next_mac[6]; /* FL_MODE_DIRECT: the station that the kernel sends to */
	__u8 pad[2];
};

/*
 * Station of every peer that has no kernel objects of its own: the network's one route leads there, and fl_to_peer
 * sends its frames on to the peer that holds the packet's destination.
 */
#define FL_ANY_PEER_MAC                                                                                           \
	{                                                                                                         \
		0x02, 'f', 'l', 'a', 'n', 'n'                                                                     \
	}

/* fl_asked: key of fl_peers -> what was sent to it by way of that station; taken away by the daemon. */
struct fl_asked {
	__u64 packets;
};

/* fl_vteps: public address of a member -> its subnet (a member with several subnets: any of them). */
struct fl_addr {
	__u8 addr[FL_ADDR_LEN];
};

enum fl_pod_flag {
	FL_POD_SHAPED = 1 << 0,	   /* a qdisc on the veth shapes it: a redirect would skip it */
	FL_POD_GUARDED = 1 << 1,   /* rules that judge single packets concern it: the kernel carries everything */
	FL_POD_STATELESS = 1 << 2, /* no rule can concern it: FL_FASTPATH_AUTO carries everything */
	FL_POD_NODE = 1 << 3,	   /* the node's own address, not a pod's. Written by the daemon */
};

/* fl_levels: local prefix -> flags that pods in it have beside their port's. Written by the daemon. */
struct fl_level {
	enum fl_pod_flag flags;
};

/* fl_proof, one entry: until when FL_POD_STATELESS counts. Written by the daemon. */
struct fl_proof {
	__u64 until; /* ns, CLOCK_MONOTONIC */
};

/* fl_pods: local address -> where it lives. Learned by fl_to_pod, removed by the daemon. */
struct fl_pod {
	__u32 ifindex; /* host side of the veth */
	__u8 mac[6];
	__u8 gateway_mac[6]; /* source of frames that the kernel delivers to the pod */
	enum fl_pod_flag flags;
};

/* fl_ports: host side of a pod's veth -> what the daemon knows of it, and the MAC that its pod spoke from last. */
struct fl_port {
	enum fl_pod_flag flags;
	__u8 mac[6]; /* the programs' */
	__u8 pad[2];
};

/* fl_flows: one entry per connection, seen from the pod. */
struct fl_flow_key {
	__u8 pod[FL_ADDR_LEN];
	__u8 remote[FL_ADDR_LEN];
	__u16 pod_port; /* network byte order; ICMP echo: its id in both */
	__u16 remote_port;
	__u8 proto;
	__u8 pad[3];
};

/*
 * A word says that the kernel carried a packet of this direction unchanged: bits 41-63 are of the key's hash, bit
 * 40 is set once a TCP connection is established, bits 0-39 are the time (2^20 ns, CLOCK_MONOTONIC). It is written
 * whole, so that a CPU that was late, and meets another flow's entry in this place by now, leaves nothing that
 * counts.
 */
struct fl_flow {
	__u64 tx;      /* from the pod, 0: never */
	__u64 rx;      /* to the pod */
	__u32 ifindex; /* pod's veth */
	__u32 born;    /* 2^20 ns */
};

/*
 * fl_lessons, per CPU: packets that began their way through the kernel here, as they looked then. skb->tc_index
 * carries the number, and the program at the far end compares.
 */
struct fl_lesson {
	struct fl_flow_key key;
	__u32 seq; /* TCP's; both wire order */
	__u32 ack;
	__u16 id;  /* wire order */
	__u16 len; /* IPv4 length of the largest segment */
	__u8 tos;
	__u8 ttl; /* at the far end */
	__u8 way;
	__u8 pad;
	__u32 number;  /* 0: taken */
	__u32 ifindex; /* pod's veth, 0: not known here */
	__u32 hash;
	__u32 time; /* 2^20 ns */
};

#define FL_LESSONS 64 /* several batches of a device's NAPI, before the first of it reaches the far end */

struct fl_book {
	struct fl_lesson lessons[FL_LESSONS];
	__u32 last; /* number */
};

/*
 * fl_sketch: hash of a flow's key and direction -> what flows with this hash did lately, 16 to a line. Epochs
 * are 2^31 ns (2.1 s), and wrap. A cell shared by two flows, or one that wrapped, costs looks into fl_flows that
 * find nothing.
 */
struct fl_cell {
	__u8 epoch;   /* of the last packet */
	__u8 packets; /* bits 0-6, halved every epoch; 7: fl_open may know one of these flows */
	__u8 learned; /* epoch in which one of these flows last touched fl_flows */
	__u8 ended;   /* counts these flows' ends, each of which voids what fl_open knew */
};

#define FL_LINE 16 /* cells in a cache line */

struct fl_line {
	struct fl_cell cells[FL_LINE];
};

/* fl_open: hash of a flow's key and direction -> directions that were found open in fl_flows lately. */
struct fl_open {
	struct fl_flow_key key;
	__u32 hash;    /* of the key */
	__u32 ifindex; /* pod's veth */
	__u64 until;   /* bits 0-39: 2^20 ns, CLOCK_MONOTONIC; 40-47: fl_cell.ended when fl_flows was looked at */
#ifdef FL_IPV6
	__u8 pad[8];
#endif
};

/* In a cache line. */
#ifdef FL_IPV6
#define FL_OPEN_WAYS 1
#else
#define FL_OPEN_WAYS 2
#endif

struct fl_open_set {
	struct fl_open ways[FL_OPEN_WAYS];
};

/* Where a packet was when its reason was counted: index into fl_count. */
enum fl_hook {
	FL_HOOK_FROM_POD,
	FL_HOOK_TO_PEER,
	FL_HOOK_FROM_PEER,
	FL_HOOK_TO_POD,
	FL_HOOK_XDP,
	FL_HOOKS,
};

/* fl_reasons: enum fl_reason -> packets by hook, per CPU. */
struct fl_count {
	__u64 from_pod;
	__u64 to_peer;
	__u64 from_peer;
	__u64 to_pod;
	__u64 xdp;
};

/* fl_peer_stats: counters' slot of a peer -> traffic carried by BPF, per CPU. Slot 0 is nobody's. */
struct fl_traffic {
	__u64 tx_packets;
	__u64 tx_bytes; /* inner IPv4 bytes; a super-packet counts as its segments */
	__u64 rx_packets;
	__u64 rx_bytes;
};

/* fl_events: what `flannel-ebpf monitor` is told of a packet; addresses and ports in network byte order. */
struct fl_event {
	__u64 at; /* ns, CLOCK_MONOTONIC */
	__u32 ifindex;
	__u32 len;
	__u8 source[FL_ADDR_LEN]; /* of the inner packet, where there is one */
	__u8 target[FL_ADDR_LEN];
	__u8 outer[FL_ADDR_LEN]; /* who sent the tunnel packet, else 0 */
	__u16 source_port;
	__u16 target_port;
	__u8 proto;
	__u8 hook;   /* enum fl_hook */
	__u8 reason; /* enum fl_reason */
	__u8 tcp_flags;
#ifndef FL_IPV6
	__u8 pad[4];
#endif
};

/*
 * Every packet that a program looks at ends in exactly one of these. FL_FAST_*: carried by BPF.
 * FL_LEARN_*: noted, and left to the kernel. FL_DROP_*: dropped (or, with FL_CHECK_COUNT, only counted).
 * All others: left to the kernel unmodified, for the reason named.
 */
enum fl_reason {
	FL_GO_ON = 0, /* not decided yet: a helper's "go on". Never counted; a bug if it is */
	FL_FAST_VXLAN,
	FL_FAST_DIRECT,
	FL_FAST_UDP,
	FL_LEARN_SYN,	     /* a connection begins */
	FL_LEARN_NEW,	     /* flow that the kernel has not been seen to carry in the directions needed */
	FL_LEARN_REVALIDATE, /* it has, but too long ago */
	FL_LEARN_PEER,	     /* the kernel has not been seen to exchange packets with this peer lately */
	FL_LEARN_YOUNG,	     /* too few packets yet to be worth a flow entry */
	FL_LEARN_LEFT,	     /* fl_to_peer: the kernel let it out unchanged */
	FL_LEARN_DELIVERED,  /* fl_to_pod: the kernel delivered it unchanged */
	FL_LEARN_CHANGED,    /* fl_to_*: the kernel changed it on its way */
	FL_LEARN_LATE,	     /* fl_to_*: it was queued on its way, or came to another CPU */
	FL_WRAPPED,	     /* fl_to_peer: the kernel's packet, sent through the tunnel by BPF */
	FL_UNWRAPPED,	     /* fl_from_peer: a tunnel's packet, opened by BPF for the kernel */
	FL_TCP_STATE,	     /* FIN, RST or odd flags: conntrack must see it */
	FL_STAND_ASIDE,	     /* the daemon is silent */
	FL_MEMBER,	     /* fl_xdp: a member's tunnel packet, passed on */
	FL_NOT_OVERLAY,	     /* no peer's subnet and not our tunnel, or a peer that is the kernel's */
	FL_NOT_FAMILY,	     /* another EtherType than that of these programs' IP, or a VLAN tag */
	FL_NOT_UNICAST,	     /* multicast or broadcast, frame or address */
	FL_TRUNCATED,
	FL_BAD_HEADER, /* version, header length, total length or checksum */
	FL_IP_OPTIONS, /* of IPv4, or extension headers of IPv6 */
	FL_FRAGMENT,
	FL_TTL,
	FL_TOO_BIG,	     /* larger than the path: the kernel fragments or answers */
	FL_PROTOCOL,	     /* neither TCP, UDP nor ICMP echo; neighbour discovery */
	FL_GSO,		     /* a super-packet of a kind the kernel must segment */
	FL_CHECKSUM,	     /* udp: checksum still to be filled in, and the peer has but a relay; IPv6: none */
	FL_ECN,		     /* RFC 6040 says drop or log: the kernel decides */
	FL_OUTER,	     /* outer IPv4 options, fragment or length that does not fit */
	FL_VXLAN_HEADER,     /* reserved bits, or no I flag */
	FL_VNI,		     /* another network's */
	FL_INNER_MAC,	     /* inner destination is not our VTEP */
	FL_NO_POD,	     /* no known pod has this address */
	FL_SHAPED,	     /* pod's veth has a shaping qdisc */
	FL_GUARDED,	     /* rules that judge single packets concern this pod */
	FL_NOT_GATEWAY,	     /* pod's frame is for another machine on its bridge, which then routes it */
	FL_POD_SOURCE,	     /* pod sends from an address that is not its own: it routes, or is one of several */
	FL_PEER_SOURCE,	     /* peer sends from an address that is nobody's here: it routes */
	FL_HELPER,	     /* a BPF helper refused; packet still whole */
	FL_DROP_NOT_MEMBER,  /* tunnel packet whose outer source holds no lease */
	FL_DROP_PEER_SOURCE, /* inner source is another node's, or of another node's pods */
	FL_DROP_POD_SOURCE,  /* pod sends from an address of its node */
	FL_DROP_POD_TUNNEL,  /* pod sends a tunnel packet itself */
	FL_DROP_BROKEN,	     /* a helper failed after the packet was changed; should stay 0 */
	FL_DROP_NO_PEER, /* fl_to_peer: nobody holds the address, or no packet of this kind can be sent by BPF */
	FL_REASONS,
};

#endif
