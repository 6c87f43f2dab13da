"""The keys of one flannel network in etcd: read as one snapshot, written only while still ours to write."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from flannel_ebpf.base.errors import EtcdRefused, EtcdTooMuch, LeaseConflict, SourceError
from flannel_ebpf.base.model import Lease
from flannel_ebpf.leases import lease_format
from flannel_ebpf.leases.allocate import rival
from flannel_ebpf.leases.etcd import messages
from flannel_ebpf.leases.etcd.client import EtcdClient
from flannel_ebpf.leases.etcd.session import MAX_MESSAGE
from flannel_ebpf.leases.snapshot import Snapshot

MOST_NAMED = 100
"""Keys read by name at once: etcd takes 128 operations in a transaction (--max-txn-ops)."""
PAGE = 1 << 13
"""Keys that one answer has; those of leases take 2 MiB."""


def prefix_end(prefix: bytes) -> bytes:
    """Return etcd's range_end for all keys that start with `prefix`, whose last byte is not 0xff."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


@dataclass(slots=True)
class _Read:
    """Keys as of one revision. `count` is how many there are in all, `size` how long their values were."""

    revision: int
    cluster_id: int
    count: int
    items: list[lease_format.Item] = field(default_factory=list)
    size: int = 0


class Registry:
    """Reads and writes below `prefix` (flannel's `--etcd-prefix`).

    All methods raise EtcdUnavailable and EtcdRefused. Each write may reach etcd twice (see EtcdClient.ask);
    the grant id in the key tells our own first attempt from a stranger's.
    """

    def __init__(self, client: EtcdClient, prefix: str) -> None:
        self._client = client
        self._parser = lease_format.Parser()
        self._indexed: tuple[tuple[Lease, ...], lease_format.Index | None] = (), None
        self._page = PAGE
        self.last: Snapshot | None = None
        """What was read last; None: nothing has been."""
        self.prefix = prefix

    @property
    def watched(self) -> str:
        """The prefix to watch for lease changes."""
        return lease_format.subnets_prefix(self.prefix)

    def reconnect(self) -> None:
        """Ask from now on over a new connection; what is under way is asked again."""
        self._client.reconnect()

    def network_config(self) -> str | None:
        """Return the network config's text, or None while there is none."""
        response = self._client.ask("KV/Range", messages.RangeRequest(key=self._config_key))
        return response.kvs[0].value.decode(errors="replace") if response.kvs else None

    def set_network_config(self, text: str) -> None:
        """Write the network config; its check is the caller's."""
        self._client.ask("KV/Put", messages.PutRequest(key=self._config_key, value=text.encode()))

    def replace_network_config(self, before: str, text: str) -> None:
        """Write the network config likewise, over `before` only; raises LeaseConflict over anything else."""
        request = messages.TxnRequest(failure=[_get(self._config_key)])
        request.compare.add(key=self._config_key, target=messages.Compare.VALUE, value=before.encode())
        put = request.success.add().request_put
        put.key, put.value = self._config_key, text.encode()
        response = self._client.ask("KV/Txn", request)
        stands = () if response.succeeded else (kv.value for kv in response.responses[0].response_range.kvs)
        if not response.succeeded and put.value not in stands:
            name = self._config_key.decode()
            raise LeaseConflict(f"{name} was changed by somebody else meanwhile and was not written")

    def snapshot(self) -> Snapshot:
        """Return all leases, in one linearizable read."""
        read = self._read()
        leases, skipped = lease_format.parse_snapshot(read.items, self._parser.lease)
        self._parser.keep(read.items)
        self._indexed = leases, lease_format.Index.of(leases, skipped)  # now, not when a change is waiting
        self.last = Snapshot(read.revision, read.cluster_id, leases, skipped)
        return self.last

    def latest(self) -> Snapshot:
        """Return all leases, by a read of what was written since the last one where that is enough."""
        return self.snapshot_since(self.last) if self.last else self.snapshot()

    def snapshot_since(self, before: Snapshot) -> Snapshot:
        """Return all leases, by a read of what was written after `before`, or of all where it must be."""
        return self.changed_since(before, {}) or self.snapshot()

    def changed_since(self, before: Snapshot, gone: Mapping[str, int]) -> Snapshot | None:
        """Return all leases, in one linearizable read of those keys that were written after `before`.

        `gone` are keys that were deleted, with the revision of that. The number of keys, which etcd tells as
        well, shows whether there were others. Then, and whenever the answer does not continue `before`, None:
        everything must be read. A restored etcd may continue it by chance: the caller takes a whole
        `snapshot` after every interruption and now and then.
        """
        return self._continued(before, self._read(before.revision + 1), gone)

    def followed(
        self, before: Snapshot, written: Mapping[str, int], gone: Mapping[str, int]
    ) -> Snapshot | None:
        """Return all leases likewise, by one read of the keys `written` and of how many there are.

        A watch told of both, with the revisions, and of all that was written until the last of these; what
        came after, it has yet to tell. etcd goes through all keys to find those since a revision: with 50,000
        that takes it 60 ms, for each node. None also when these are too many for one transaction.
        """
        if len(written) > MOST_NAMED:
            return None
        count = _get(self.watched.encode(), range_end=prefix_end(self.watched.encode()), count_only=True)
        request = messages.TxnRequest(success=[count, *(_get(key.encode()) for key in written)])
        answer = self._client.ask("KV/Txn", request)
        counted, *found = (response.response_range for response in answer.responses)
        read = _Read(answer.header.revision, answer.header.cluster_id, counted.count)
        read.items += (_item(kv) for one in found for kv in one.kvs)
        snapshot = self._continued(before, read, gone)
        told = max((before.revision, *written.values(), *gone.values()))
        return replace(snapshot, revision=min(told, snapshot.revision)) if snapshot else None

    def _continued(self, before: Snapshot, read: _Read, gone: Mapping[str, int]) -> Snapshot | None:
        continues = read.cluster_id == before.cluster_id and read.revision >= before.revision
        told = read.items or gone
        if continues and not told and read.count == len(before.leases) + len(before.skipped):
            return replace(before, revision=read.revision)
        index = self._index(before)
        lost = [  # but what was made anew since, and read already
            key
            for key, revision in gone.items()
            if before.revision < revision <= read.revision
            if index and key in index.leases and index.leases[key].mod_revision < revision
        ]
        merged = index.merged(read.items, self._parser.lease, lost) if index else None
        if not continues or merged is None or read.count != len(merged.leases) + len(before.skipped):
            return None
        leases = tuple(merged.leases.values())
        self._indexed = leases, merged
        subnets = None if before.skipped else frozenset(merged.holders)
        return Snapshot(read.revision, read.cluster_id, leases, before.skipped, subnets)

    def _index(self, before: Snapshot) -> lease_format.Index | None:
        leases, index = self._indexed
        if index and leases is before.leases:
            return index
        return lease_format.Index.of(before.leases, before.skipped)

    def _read(self, since: int = 0) -> _Read:
        """Return every lease key written at revision `since` or later, as of one revision.

        Page by page, and by smaller pages as long as there are values that make one too large for a message.
        """
        while True:
            try:
                read = self._pages(since)
            except EtcdTooMuch:
                if self._page == 1:
                    raise
                self._page = max(1, self._page // 16)
                continue
            if not since and read.size < MAX_MESSAGE // 2:
                self._page = PAGE
            return read

    def _pages(self, since: int) -> _Read:
        key, end = self.watched.encode(), prefix_end(self.watched.encode())
        read: _Read | None = None
        while True:
            request = messages.RangeRequest(key=key, range_end=end, limit=self._page, min_mod_revision=since)
            if read:
                request.revision = read.revision
            answer = self._client.ask("KV/Range", request)
            if read is None:
                read = _Read(answer.header.revision, answer.header.cluster_id, answer.count)
            read.items += map(_item, answer.kvs)
            read.size += sum(len(kv.value) for kv in answer.kvs)
            if not answer.more:
                return read
            key = answer.kvs[-1].key + b"\0"

    def seconds_left(self, lease: Lease) -> float | None:
        """Return how long a lease still lives if nobody renews it, None for a reservation."""
        if not lease.etcd_lease:
            return None
        asked = messages.LeaseTimeToLiveRequest(ID=lease.etcd_lease)
        return float(self._client.ask("Lease/LeaseTimeToLive", asked).TTL)

    def read(self, key: str) -> lease_format.Item | None:
        """Return what is under `key` now, lease or not."""
        response = self._client.ask("KV/Range", messages.RangeRequest(key=key.encode()))
        return _item(response.kvs[0]) if response.kvs else None

    def create(self, lease: Lease, ttl: int) -> Lease:
        """Write a new key that lives `ttl` seconds (0: a reservation), if there is none (key version 0).

        `lease.key` is made from the subnets when empty. Returns the lease as it stands in etcd. Raises
        LeaseConflict when the key exists.
        """
        key = lease.key or lease_format.subnet_key(self.prefix, lease.subnets)
        absent = messages.Compare(key=key.encode(), target=messages.Compare.VERSION, version=0)
        return self._write(replace(lease, key=key, create_revision=0), ttl, absent)

    def create_alone(self, lease: Lease, ttl: int, before: Snapshot) -> Lease:
        """Create a key likewise, if no other node has a part of what it names; `before`: a snapshot.

        Two keys may agree in one family and differ in the other, and etcd compares whole keys. So it looks
        again, and takes back what came second. Raises LeaseConflict.
        """
        made = self.create(lease, ttl)
        first = rival(made, self.snapshot_since(before).leases)
        if first:
            self.delete(made)
            raise LeaseConflict(f"{first.key} was there before {made.key} and shares a subnet with it")
        return made

    def rewrite(self, lease: Lease, ttl: int) -> Lease:
        """Replace the key's value and TTL, if it still is at `lease.mod_revision`.

        A `ttl` of 0 makes or keeps it a reservation. Raises LeaseConflict when anybody has written it since.
        """
        return self._write(lease, ttl, _unchanged(lease))

    def delete(self, lease: Lease) -> None:
        """Remove the key, if it still is at `lease.mod_revision`; raises LeaseConflict otherwise."""
        key = lease.key.encode()
        request = messages.TxnRequest(compare=[_unchanged(lease)], failure=[_get(key)])
        request.success.add().request_delete_range.key = key
        response = self._client.ask("KV/Txn", request)
        if not response.succeeded and response.responses[0].response_range.kvs:
            raise LeaseConflict(f"{lease.key} was changed by somebody else and was not deleted")
        self._revoke(lease.etcd_lease)

    def _write(self, lease: Lease, ttl: int, condition: Any) -> Lease:
        key, value = lease.key.encode(), lease_format.encode_lease(lease)
        grant = self._client.ask("Lease/LeaseGrant", messages.LeaseGrantRequest(TTL=ttl)).ID if ttl else 0
        request = messages.TxnRequest(compare=[condition], failure=[_get(key)])
        put = request.success.add().request_put
        put.key, put.value, put.lease = key, value, grant
        try:
            response = self._client.ask("KV/Txn", request)
        except EtcdRefused as error:
            if not error.after_silence:  # else, as after EtcdUnavailable, the grant may hold the key already,
                self._revoke(grant)  # and revoking would delete it
            raise
        if response.succeeded:
            revision = response.header.revision
            created = lease.create_revision or revision
            return replace(lease, etcd_lease=grant, mod_revision=revision, create_revision=created)
        for kv in response.responses[0].response_range.kvs:
            # our first attempt got through, only its answer was lost
            if kv.lease == grant and kv.value == value:
                return lease_format.parse_item(_item(kv))
        self._revoke(grant)
        raise LeaseConflict(f"{lease.key} was written by somebody else at the same time")

    def _revoke(self, grant: int) -> None:
        """Give back a grant that holds no key. If that fails it expires by itself."""
        if grant:
            with suppress(SourceError):
                self._client.ask("Lease/LeaseRevoke", messages.LeaseRevokeRequest(ID=grant))

    @property
    def _config_key(self) -> bytes:
        return lease_format.config_key(self.prefix).encode()


def _item(kv: Any) -> lease_format.Item:
    value = kv.value if len(kv.value) <= lease_format.MAX_VALUE else kv.value[: lease_format.MAX_VALUE + 1]
    key = kv.key.decode(errors="replace")
    return lease_format.Item(key, value, kv.lease, kv.mod_revision, kv.create_revision)


def _get(key: bytes, **more: Any) -> Any:
    return messages.RequestOp(request_range=messages.RangeRequest(key=key, **more))


def _unchanged(lease: Lease) -> Any:
    return messages.Compare(
        key=lease.key.encode(), target=messages.Compare.MOD, mod_revision=lease.mod_revision
    )
