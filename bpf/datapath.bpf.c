/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The tc programs, named by where a packet comes from or goes to. Read from the bottom up.
 *
 *            |<------------------- inner leg ------------------>|              |<-- outer leg -->|
 *   pod -> veth --[fl_from_pod]--> bridge, netfilter, routing --[fl_to_peer]--> overlay --[fl_to_peer]--> uplink
 *   uplink --[fl_from_peer]--> overlay --[fl_from_peer]--> netfilter, routing, bridge --[fl_to_pod]--> veth -> pod
 *
 * fl_from_pod and fl_from_peer on the uplink carry admitted packets themselves and leave all others to the kernel.
 * What the kernel does with those the programs at each leg's far end see. Where only the inner leg is the
 * kernel's, the programs on the overlay's device (flannel.<VNI>, or the udp backend's TUN) and on the uplink do
 * the outer one.
 */
#include "from_peer.h"
#include "from_pod.h"
#include "to_peer.h"
#include "to_pod.h"
#include "verdict.h"

/* tc egress of a pod's veth: from the kernel to the pod. */
SEC("tc")
int fl_to_pod(struct __sk_buff *skb)
{
	watch(skb);
	if (!skb->FL_TICKET)
		return TC_ACT_UNSPEC;
	return tc_verdict(FL_HOOK_TO_POD, to_pod(skb));
}

/* tc ingress of the uplink and of the overlay's device: from another node to the kernel. */
SEC("tc")
int fl_from_peer(struct __sk_buff *skb)
{
	bool taken = false;
	enum fl_reason reason;
	int verdict;

	watch(skb);
	reason = from_peer(skb, &taken);
	verdict = reason ? tc_verdict(FL_HOOK_FROM_PEER, reason) : TC_ACT_UNSPEC;
	return taken ? TC_ACT_REDIRECT : verdict;
}

/* tc egress of the overlay's device and of the uplink: from the kernel to another node. */
SEC("tc")
int fl_to_peer(struct __sk_buff *skb)
{
	bool sent = false;
	enum fl_reason reason;
	int verdict;

	watch(skb);
	reason = to_peer(skb, &sent);
	verdict = reason ? tc_verdict(FL_HOOK_TO_PEER, reason) : TC_ACT_UNSPEC;
	return sent ? TC_ACT_REDIRECT : verdict;
}

/* tc ingress of a pod's veth: from the pod to the kernel. */
SEC("tc")
int fl_from_pod(struct __sk_buff *skb)
{
	watch(skb);
	return tc_verdict(FL_HOOK_FROM_POD, from_pod(skb));
}

char _license[] SEC("license") = "Dual BSD/GPL";
