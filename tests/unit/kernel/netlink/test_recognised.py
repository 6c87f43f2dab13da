"""A dump that is the same as the last one gives the same objects."""

from __future__ import annotations

from flannel_ebpf.kernel.netlink.recognised import Recognised


def test_the_same_octets_give_the_same_object() -> None:
    table: Recognised[list[bytes]] = Recognised()
    parsed: list[bytes] = []

    def parse(body: bytes) -> list[bytes] | None:
        parsed.append(body)
        return None if body == b"foreign" else [body]

    first = table.read([b"one", b"two", b"foreign"], parse)
    again = table.read([b"two", b"one", b"foreign", b"three"], parse)
    assert first == [[b"one"], [b"two"]]
    assert again == [[b"two"], [b"one"], [b"three"]]
    assert again[0] is first[1]
    assert parsed == [b"one", b"two", b"foreign", b"three"]
    table.read([], parse)
    assert table.read([b"one"], parse)[0] is not first[0], "what was gone is told anew"


def test_octets_that_change_by_themselves_do_not_count() -> None:
    table: Recognised[list[bytes]] = Recognised(3)
    [first] = table.read([b"one, seen 5 s ago"], lambda body: [body])
    [again] = table.read([b"one, seen 6 s ago"], lambda body: [body])
    assert again is first
