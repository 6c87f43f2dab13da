"""What is kept, for how long, and at what size."""

from __future__ import annotations

from flannel_ebpf.base.kept import Kept, same_objects


def test_what_is_asked_for_again_is_built_once_however_much_it_is() -> None:
    built: list[int] = []

    @Kept
    def square(number: int) -> tuple[int]:
        built.append(number)
        return (number * number,)

    first = [square(number) for number in range(50_000)]
    for _ in range(5):
        assert all(square(number) is first[number] for number in range(50_000))
    assert len(built) == 50_000


def test_what_is_not_asked_for_any_more_is_dropped() -> None:
    kept = Kept(lambda number: (number,))
    for start in range(0, 200_000, 10):  # ten of a hundred change each time
        for number in range(start, start + 100):
            kept(number)
    assert len(kept) < 1000


def test_the_very_same_objects() -> None:
    one, other = (1, 2), tuple(number for number in (1, 2))
    assert same_objects([one], [one])
    assert not same_objects([one], [other])
    assert not same_objects([one], [])
