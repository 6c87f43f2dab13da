/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The only place where a reason is counted and becomes a verdict. */
#ifndef FLANNEL_VERDICT_H
#define FLANNEL_VERDICT_H

#include <linux/pkt_cls.h>
#include <stdbool.h>

#include "maps.h"

#ifndef FLANNEL_XDP
#include "monitor.h"
#endif

/* A real function, not inlined: that keeps enum fl_reason and enum fl_hook in the object's BTF. */
static __noinline void count_reason(enum fl_hook hook, enum fl_reason reason)
{
	__u32 key = reason;
	struct fl_count *count = bpf_map_lookup_elem(&fl_reasons, &key);

	if (count && hook < FL_HOOKS)
		((__u64 *)count)[hook]++;
#ifndef FLANNEL_XDP
	tell(hook, reason);
#endif
}

static __always_inline bool is_fast(enum fl_reason reason)
{
	return reason >= FL_FAST_VXLAN && reason <= FL_FAST_UDP;
}

static __always_inline bool is_drop(enum fl_reason reason)
{
	if (reason >= FL_DROP_BROKEN)
		return true;
	return reason >= FL_DROP_NOT_MEMBER && fl_cfg.source_check == FL_CHECK_DROP;
}

/*
 * TC_ACT_UNSPEC, not TC_ACT_OK, for the kernel path: filters of others on the same hook still run.
 */
static __always_inline int tc_verdict(enum fl_hook hook, enum fl_reason reason)
{
	count_reason(hook, reason);
	if (is_fast(reason))
		return TC_ACT_REDIRECT;
	return is_drop(reason) ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}

#endif
