#!/usr/bin/env python3
"""What flannel's own code makes of generated network configs, lease keys and lease values.

`tools/flannel_answers.py` builds flannel's code (tools/flannel.sh), asks it, and writes questions and
answers, one JSON list a line, to tests/unit/flannel_answers.jsonl; tests hold our parsers against them. The
questions are drawn from a seed: the same in each run, until the lists below change.
"""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "tests" / "unit" / "flannel_answers.jsonl"
COUNTS = {"config": 700, "key": 100, "value": 250}

ABSENT = object()
ANY = "0.0.0.0"  # noqa: S104 - a value to parse
Choices = tuple[list[Any], list[Any]]
"""Values that are likely to be meant, and odd ones."""

FLAG: Choices = ([ABSENT, True, False], [None, "true", 1])
CONFIG: dict[str, Choices] = {
    "Network": (
        ["10.1.0.0/16", "10.1.0.0/16", "10.0.0.0/8", "172.20.0.0/22", "172.20.0.0/23", "192.168.4.0/28"],
        [
            *("192.168.4.0/29", "192.168.4.0/32", "10.1.77.9/16", "0.0.0.0/0", "10.1.0.0", "10.1.0.0/"),
            *("10.1.0.0/33", "10.1.0.0/-1", "10.1.0.0/016", "10.1.0/16", "010.1.0.0/16", "fc00::/48", ""),
            *(" 10.1.0.0/16", "10.1.0.0/255.255.0.0", 5, None, ["10.1.0.0/16"], ABSENT),
        ],
    ),
    "SubnetLen": (
        [ABSENT, ABSENT, ABSENT, 24, 24, 26, 30],
        [0, 8, 16, 17, 18, 25, 29, 31, 32, 33, -1, "24", 24.0, 24.5, None, True, 2**40],
    ),
    "SubnetMin": (
        [ABSENT, ABSENT, ABSENT, "10.1.16.0", "10.1.1.0", "172.20.1.0"],
        ["10.1.0.0", "10.1.255.0", "10.2.0.0", "10.1.0.5", ANY, "", "10.1.1", "fc00::", 7, None],
    ),
    "SubnetMax": (
        [ABSENT, ABSENT, ABSENT, "10.1.200.0", "10.1.16.0", "172.20.2.0"],
        ["10.1.0.0", "10.1.1.0", "10.2.0.0", "10.1.200.5", ANY, "", "10.1.200", "fc00::", 7, None],
    ),
    "EnableIPv4": ([ABSENT, ABSENT, ABSENT, True], FLAG[1]),
    "EnableNFTables": FLAG,
    "Backend": (
        [{"Type": "vxlan"}, {"Type": "vxlan"}, {"Type": "host-gw"}, {"Type": "udp"}, ABSENT],
        [
            *(None, {}, [], "vxlan", 5, {"type": "vxlan"}, {"TYPE": "udp"}, {"VNI": 1}, {"Type": "VXLAN"}),
            *({"Type": "wireguard"}, {"Type": "alloc"}, {"Type": "gre"}, {"Type": ""}, {"Type": None}),
            *({"Type": 5}, {"Type": "vxlan", "VNI": 7, "Port": 4789}, {"Type": "vxlan", "GBP": True}),
        ],
    ),
}
CONFIG6: dict[str, Choices] = {
    "EnableIPv6": ([True], FLAG[1]),
    "IPv6Network": (
        ["fc00::/48", "fc00::/48", "fd00:1::/62", "fd00:1::/63", "fd00:1::/120"],
        [
            *(
                "fd00:1::/124",
                "fd00:1::/125",
                "fd00:1::7/64",
                "fd00:1::/128",
                "::/0",
                "fd00::",
                "10.1.0.0/16",
            ),
            *("fd00::%eth0/64", "", None, ABSENT),
        ],
    ),
    "IPv6SubnetLen": (
        [ABSENT, ABSENT, ABSENT, 64, 80, 122],
        [0, 50, 66, 126, 127, 128, -1, "64", None],
    ),
    "IPv6SubnetMin": (
        [ABSENT, ABSENT, ABSENT, "fc00:0:0:1::"],
        ["fc00:0:0:ff::", "fc00::5", "fd00::", "::", "10.1.0.0", "", None],
    ),
    "IPv6SubnetMax": (
        [ABSENT, ABSENT, ABSENT, "fc00:0:0:ff::"],
        ["fc00:0:0:1::", "fc00::5", "fd00::", "::", "10.1.0.0", "", None],
    ),
}
DATA: Choices = (
    [ABSENT, {"VNI": 1, "VtepMAC": "02:00:00:00:00:07"}],
    [None, {}, [], "text", 7, {"a": {"b": [1, 2.5, None]}}],
)
VALUE: dict[str, Choices] = {
    "PublicIP": (
        ["192.168.64.7", "10.0.0.1"],
        [
            *(ANY, "255.255.255.255", "127.0.0.1", "224.0.0.1", "192.168.64", "192.168.64.256"),
            *("192.168.064.7", "fc00::1", "::ffff:10.0.0.1", "", " 10.0.0.1", 7, None, ABSENT),
        ],
    ),
    "PublicIPv6": ([ABSENT, None, "fd00::7"], ["fd00::", "::1", "10.0.0.1", "fe80::1%eth0", "", 7]),
    "BackendType": (["vxlan", "host-gw", "udp", ABSENT], ["VXLAN", "", None, 5]),
    "BackendData": DATA,
    "BackendV6Data": DATA,
}
NO_OBJECTS = [
    "",
    "{}",
    "[]",
    "null",
    "5",
    '"text"',
    "{",
    "{]",
    '{"Network"}',
    '{"PublicIP":"1.2.3.4",}',
    "\ufeff{}",
]

KEY: tuple[Choices, ...] = (
    (["/coreos.com/network/subnets/"], ["/subnets/", "/a/subnets//", "/coreos.com/network/subnets/x"]),
    (["10.1.5.0"], ["10.1.5.7", ANY, "300.1.5.0", "10.1.5", "10.1.05.0", "x", ""]),
    (["-"], ["/", "_", ""]),
    (["24", "16", "30"], ["0", "31", "32", "024", "-1", "", "x", "9" * 20]),
    (["", "&fc00::-64"], ["&fc00:-64", "&fc00::-127", "&fc00::-128", "&-64", "&FC00::-64", "&::-0"]),
    ([""], ["/", "\n", "x"]),
)


class Questioner:
    """Draws questions: mostly of values that could be meant, each time with an odd one among them or not."""

    def __init__(self, seed: str) -> None:
        self._rng = random.Random(seed)  # noqa: S311 - repeatable is what is wanted

    def questions(self) -> Iterator[dict[str, str]]:
        """Yield every question, each once."""
        for kind, count in COUNTS.items():
            texts: dict[str, None] = {}
            while len(texts) < count:
                texts[getattr(self, kind)()] = None
            yield from ({kind: text} for text in texts)

    def config(self) -> str:
        """Return the text of a network config."""
        dual = self._rng.random() < 0.3
        return self._object(CONFIG | CONFIG6 if dual else CONFIG)

    def value(self) -> str:
        """Return what may stand under a lease's key."""
        return self._object(VALUE)

    def key(self) -> str:
        """Return a key below `subnets/`."""
        return "".join(self._drawn(KEY))

    def _drawn(self, choices: tuple[Choices, ...]) -> list[Any]:
        odd = self._rng.randrange(len(choices)) if self._rng.random() < 0.6 else None
        return [self._rng.choice(one[at == odd]) for at, one in enumerate(choices)]

    def _object(self, fields: Mapping[str, Choices]) -> str:
        if self._rng.random() < 0.03:
            return self._rng.choice(NO_OBJECTS)
        values = self._drawn(tuple(fields.values()))
        pairs = [(name, value) for name, value in zip(fields, values, strict=True) if value is not ABSENT]
        self._rng.shuffle(pairs)
        if pairs and self._rng.random() < 0.1:  # a key twice, in any spelling: the last one counts
            name, value = self._rng.choice(pairs)
            pairs.append((name.swapcase(), self._rng.choice([None, value, "10.3.0.0/16"])))
        if self._rng.random() < 0.1:
            pairs.append(("Comment", "kept"))
        body = ",".join(f"{json.dumps(name)}:{json.dumps(value)}" for name, value in pairs)
        tail = self._rng.choice(["\n", " ", "x", "}", ",", "\x00"]) if self._rng.random() < 0.05 else ""
        return "{" + body + "}" + tail


def main() -> None:
    """Ask flannel and write the table."""
    build = [ROOT / "tools" / "flannel.sh"]
    folder = Path(subprocess.run(build, stdout=subprocess.PIPE, text=True, check=True).stdout.strip())
    asked = list(Questioner("flannel").questions())
    lines = "".join(f"{json.dumps(question)}\n" for question in asked)
    done = subprocess.run([folder / "answers"], input=lines, stdout=subprocess.PIPE, text=True, check=True)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    rows = [f"{json.dumps(row)}\n" for row in zip(asked, answers, strict=True)]
    TABLE.write_text("".join(rows))
    good = sum("error" not in answer for answer in answers)
    print(f"{len(rows)} questions, {good} of them well answered, in {TABLE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
