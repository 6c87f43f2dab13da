"""Values of flags that click has no type for: each reads a text, checks it and says what would be right."""

from __future__ import annotations

import math
from ipaddress import ip_address, ip_network
from typing import Any
from urllib.parse import urlsplit

import click

from flannel_ebpf.base import family
from flannel_ebpf.base.family import Family
from flannel_ebpf.contract import features

Parameter = click.Parameter | None
Context = click.Context | None


class Address(click.ParamType[family.Address]):
    """An address of one family."""

    name = "address"

    def __init__(self, of: Family = Family.V4) -> None:
        self._family = of

    def convert(self, value: Any, param: Parameter, ctx: Context) -> family.Address:
        """Return the address."""
        try:
            return self._family.address(str(value))
        except ValueError:
            example = {Family.V4: "192.0.2.1", Family.V6: "2001:db8::1"}[self._family]
            self.fail(f"{value!r} is not an {self._family} address such as {example}.", param, ctx)


class OptionalAddress(Address):
    """The same; "" means not given, as unit files with unset variables have it."""

    def convert(self, value: Any, param: Parameter, ctx: Context) -> family.Address | None:  # type: ignore[override]  # as said
        """Return the address or None."""
        return super().convert(value, param, ctx) if value else None


class AnyAddress(click.ParamType[family.Address]):
    """An address of either family."""

    name = "address"

    def convert(self, value: Any, param: Parameter, ctx: Context) -> family.Address:
        """Return the address."""
        try:
            return ip_address(str(value))
        except ValueError:
            self.fail(f"{value!r} is not an address such as 192.0.2.1 or 2001:db8::1.", param, ctx)


class Endpoints(click.ParamType[tuple[str, ...]]):
    """A comma list of etcd endpoints."""

    name = "urls"

    def convert(self, value: Any, param: Parameter, ctx: Context) -> tuple[str, ...]:
        """Return a tuple of texts."""
        if isinstance(value, tuple):
            return value
        endpoints = tuple(part.strip() for part in value.split(",") if part.strip())
        for endpoint in endpoints:
            if not _is_endpoint(endpoint):
                self.fail(f"{endpoint!r} is not a URL such as https://192.0.2.1:2379.", param, ctx)
        if not endpoints:
            self.fail("at least one URL such as http://192.0.2.1:2379 is needed.", param, ctx)
        return endpoints


class Features(click.ParamType[tuple[str, ...]]):
    """A comma list of kernel features that programs can do without."""

    name = "features"

    def convert(self, value: Any, param: Parameter, ctx: Context) -> tuple[str, ...]:
        """Return a tuple of names."""
        if isinstance(value, tuple):
            return value
        given = tuple(part.strip() for part in value.lower().split(",") if part.strip())
        for name in given:
            if name not in features.NAMES:
                self.fail(f"{name!r} is not one of {', '.join(features.NAMES)}.", param, ctx)
        return given


class Prefix(click.ParamType[str]):
    """An etcd key prefix; a slash at its end says nothing."""

    name = "key"

    def convert(self, value: str, param: Parameter, ctx: Context) -> str:
        """Return the text without slashes at its end."""
        if not value:
            self.fail("a key such as /coreos.com/network is needed.", param, ctx)
        return value.rstrip("/") or "/"


class Seconds(click.ParamType[float]):
    """A time between two limits, in seconds; fractions are welcome."""

    name = "seconds"

    def __init__(self, low: float, high: float) -> None:
        self._low = low
        self._high = high

    def convert(self, value: Any, param: Parameter, ctx: Context) -> float:
        """Return the number."""
        try:
            seconds = float(value)
        except ValueError:
            seconds = math.nan
        if not self._low <= seconds <= self._high:
            self.fail(f"{value!r} is not a number from {self._low} to {self._high}.", param, ctx)
        return seconds


class ListenAddress(click.ParamType[str]):
    """An address to listen on, IPv4 or IPv6; "" means on every one of both."""

    name = "address"

    def convert(self, value: str, param: Parameter, ctx: Context) -> str:
        """Return the text once it has been checked."""
        try:
            return str(ip_address(value)) if value else "::"
        except ValueError:
            self.fail(f"{value!r} is not an address such as 192.0.2.1 or 2001:db8::1.", param, ctx)


class Listen(click.ParamType[str]):
    """`ADDRESS:PORT` or `:PORT` to listen on; "" means not at all."""

    name = "address:port"

    def convert(self, value: str, param: Parameter, ctx: Context) -> str:
        """Return the text with its address written out."""
        if not value:
            return value
        address, colon, port = value.rpartition(":")
        bracketed = address.startswith("[") and address.endswith("]")
        try:
            ip = ip_address((address[1:-1] if bracketed else address) or "::")
            fits = bool(colon) and 0 < int(port) < 2**16 and (ip.version == 6) == (bracketed or not address)
        except ValueError:
            fits = False
        if not fits:
            self.fail(f"{value!r} is not of the form 127.0.0.1:9100, [::1]:9100 or :9100.", param, ctx)
        return f"{ip}:{port}"


class Number(click.IntRange):
    """A whole number as Go reads one: decimal, 0x1f, 0b11, 0o17 or 017."""

    def convert(self, value: Any, param: Parameter, ctx: Context) -> int:
        """Return the number, within its limits."""
        text = str(value)
        octal = len(text) > 1 and text[0] == "0" and text.isdigit()
        try:
            number = int(text, 8 if octal else 0)
        except ValueError:
            self.fail(f"{text!r} is not a whole number such as 60.", param, ctx)
        return int(super().convert(number, param, ctx))


def _is_endpoint(text: str) -> bool:
    try:
        url = urlsplit(text if "://" in text else f"http://{text}")
        return url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:  # a port that is no number
        return False


class Verbosity(click.ParamType[int]):
    """A klog level: 0 and up."""

    name = "level"

    def convert(self, value: Any, param: Parameter, ctx: Context) -> int:
        """Read `-v=2` too: of a one-letter option click hands over the rest, "=2"."""
        digits = str(value).removeprefix("=")
        if not (digits.isascii() and digits.isdigit()):
            self.fail(f"{digits!r} is not a number such as 1.", param, ctx)
        return int(digits)


class Subnet(click.ParamType[family.Network]):
    """A subnet with its prefix length, of either family."""

    name = "subnet"

    def convert(self, value: str, param: Parameter, ctx: Context) -> family.Network:
        """Return the network; host bits must be zero, lest a typo reserve another subnet."""
        try:
            if "/" not in value:
                raise ValueError  # Python would take it for a single address
            return ip_network(value)
        except ValueError:
            self.fail(f"{value!r} is not a subnet such as 10.1.5.0/24 or fc00:0:0:5::/64.", param, ctx)
