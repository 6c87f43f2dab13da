"""What a firewall rule means, as one text per meaning: versions of a tool write the same rule differently.

A rule that holds what flannel's rules do not is somebody else's, and compared as it is.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_network
from typing import Any

_LONG = {"--source": "-s", "--destination": "-d", "--jump": "-j"}
_ORDER = ("-s", "-d", "--mark", "--comment", "-j", "--random-fully")
_MODULES = {"--mark": "mark", "--comment": "comment"}


def iptables_rule(chain: str, parts: Mapping[str, str]) -> str:
    """Return the text of a rule as iptables-save of today writes it.

    `parts` has any of -s, -d, --mark, --comment, -j and --random-fully (with the value ""), and "! " before
    one that is negated.
    """
    words = [f"-A {chain}"]
    for option in _ORDER:
        for name in (option, f"! {option}"):
            if name in parts:
                value = f'"{parts[name]}"' if option == "--comment" else parts[name]
                module = f"-m {_MODULES[option]} " if option in _MODULES else ""
                words.append(f"{module}{name} {value}".rstrip())
    return " ".join(words)


def iptables_meaning(line: str) -> str:
    """Return a rule of iptables-save, "-A CHAIN ...", as `iptables_rule` writes it; else `line` itself."""
    try:
        first, chain, *words = shlex.split(line)
        parts = _parts(words)
    except ValueError:
        return line
    return iptables_rule(chain, parts) if first == "-A" and "-j" in parts else line


def _parts(words: Sequence[str]) -> dict[str, str]:
    """Return what `iptables_rule` takes; raises ValueError for what flannel's rules do not have."""
    parts: dict[str, str] = {}
    rest = iter(words)
    negation = ""
    for word in rest:
        option = _LONG.get(word, word)
        if option == "!":
            negation = "! "
        elif option == "-m":
            if next(rest, "") not in _MODULES.values():
                raise ValueError(option)
        elif option in _ORDER and option not in parts:
            text = "" if option == "--random-fully" else next(rest, "")
            parts[negation + option] = _value(option, text)
            negation = ""
        else:
            raise ValueError(option)
    return parts


def _value(option: str, text: str) -> str:
    """Return the value in today's spelling; raises ValueError."""
    if option in ("-s", "-d"):
        return str(ip_network(text, strict=False))
    if option == "--mark":
        value, _, mask = text.partition("/")
        return f"{int(value, 0):#x}/{int(mask or '0xffffffff', 0):#x}"
    return text


def nft_meaning(statements: Iterable[Any]) -> str:
    """Return a rule's statements, as `nft -j` lists them, in nft's own words; other statements as JSON.

    Counters alter no packet and are left out.
    """
    return " ".join(_statement(one) for one in statements if "counter" not in one)


def _statement(statement: Mapping[str, Any]) -> str:
    match statement:
        case {"match": {"op": "==" | "!=" as operator, "left": left, "right": right}}:
            negated = "" if operator == "==" else "!= "
            subject, value = _subject(left), _operand(left, right)
            if subject and value:
                return f"{subject} {negated}{value}"
        case {"accept": None}:
            return "accept"
        case {"return": None}:
            return "return"
        case {"masquerade": None}:
            return "masquerade"
        case {"masquerade": {"flags": "fully-random" | ["fully-random"]}}:
            return "masquerade fully-random"
    return json.dumps(_with_prefixes(statement), sort_keys=True)


def _subject(left: Any) -> str:
    match left:
        case {"meta": {"key": "mark"}}:
            return "meta mark"
        case {"payload": {"protocol": "ip" | "ip6" as protocol, "field": "saddr" | "daddr" as side}}:
            return f"{protocol} {side}"
    return ""


def _operand(left: Any, right: Any) -> str:
    match right:
        case {"prefix": {"addr": str(address), "len": int(length)}}:
            return f"{address}/{length}"
        case int(number) if "meta" in left:
            return f"{number:#010x}"
        case str(address) if "payload" in left:
            return address
    return ""


def _with_prefixes(value: Any) -> Any:
    """Return JSON with its prefixes as "10.1.0.0/16", so that whose rule it is can be told."""
    match value:
        case {"prefix": {"addr": address, "len": length}}:
            return f"{address}/{length}"
        case dict():
            return {key: _with_prefixes(inner) for key, inner in value.items()}
        case list():
            return [_with_prefixes(inner) for inner in value]
    return value


def ranges(rule: str) -> Iterator[str]:
    """Yield the words of a rule that may be addresses or networks."""
    for word in rule.replace('"', " ").replace(",", " ").split():
        if "." in word or ":" in word:
            yield word
