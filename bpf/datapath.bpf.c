/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The tc programs, named by where a packet comes from or goes to. Read from the bottom up.
 *
 *     pod -> veth --[fl_from_pod]--> bridge, netfilter, routing -> tunnel device --[fl_to_peer]--> uplink
 *     uplink --[fl_from_peer]--> tunnel device -> netfilter, routing, bridge --[fl_to_pod]--> veth -> pod
 *
 * fl_from_pod and fl_from_peer carry admitted packets themselves and leave all others to the kernel,
 * unmodified. fl_to_peer and fl_to_pod change nothing: they note what the kernel did with marked packets.
 */
#include "from_peer.h"
#include "from_pod.h"
#include "learn.h"
#include "verdict.h"

/*
 * tc egress of a pod's veth: from the kernel to the pod. With udp the relay stands between, and what it writes
 * into the TUN is a new packet without a mark: so every packet is looked at.
 */
SEC("tc")
int fl_to_pod(struct __sk_buff *skb)
{
	watch(skb);
	if (!take_mark(skb) && fl_cfg.backend != FL_MODE_UDP)
		return TC_ACT_UNSPEC;
	return tc_verdict(FL_HOOK_TO_POD, to_pod(skb));
}

/* tc ingress of the uplink: from another node to the kernel. */
SEC("tc")
int fl_from_peer(struct __sk_buff *skb)
{
	watch(skb);
	bool taken = false;
	int verdict = tc_verdict(FL_HOOK_FROM_PEER, from_peer(skb, &taken));

	return taken ? TC_ACT_REDIRECT : verdict;
}

/* tc egress of flannel.<VNI>, of the TUN (udp) or of the uplink (direct): from the kernel to another node. */
SEC("tc")
int fl_to_peer(struct __sk_buff *skb)
{
	watch(skb);
	if (!take_mark(skb))
		return TC_ACT_UNSPEC;
	return tc_verdict(FL_HOOK_TO_PEER, to_peer(skb));
}

/* tc ingress of a pod's veth: from the pod to the kernel. */
SEC("tc")
int fl_from_pod(struct __sk_buff *skb)
{
	watch(skb);
	return tc_verdict(FL_HOOK_FROM_POD, from_pod(skb));
}

char _license[] SEC("license") = "Dual BSD/GPL";
