"""How programs come onto tc hooks: as asked for, as the kernel can, and a clear word where those differ."""

import pytest

from flannel_ebpf.agent.bpf_settings import choose_attach, tunnel_ports
from flannel_ebpf.base.errors import ConfigError
from flannel_ebpf.base.options import AttachChoice, Options


@pytest.mark.parametrize(
    ("asked", "kernel_has_tcx", "expected"),
    [
        ("auto", True, "tcx"),
        ("auto", False, "clsact"),
        ("tcx", True, "tcx"),
        ("clsact", True, "clsact"),
        ("clsact", False, "clsact"),
    ],
)
def test_choice(
    monkeypatch: pytest.MonkeyPatch, asked: AttachChoice, kernel_has_tcx: bool, expected: str
) -> None:
    monkeypatch.setattr("flannel_ebpf.agent.bpf_settings.has_tcx", lambda: kernel_has_tcx)
    assert choose_attach(Options(attach=asked)) == expected


def test_tcx_on_a_kernel_without_it_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flannel_ebpf.agent.bpf_settings.has_tcx", lambda: False)
    with pytest.raises(ConfigError, match=r"--attach: 'tcx' cannot be used: auto or clsact"):
        choose_attach(Options(attach="tcx"))


@pytest.mark.parametrize(
    ("local_range", "release", "first", "count"),
    [
        ("32768\t60999", "6.18.44-fc", 32768, 28231),
        ("32768\t60999", "5.10.0-32-amd64", 32768, 28231),
        ("32768\t60999", "7.3.4+deb13-amd64", 32768, 28232),
        ("1\t65535", "10.0.0", 1, 65535),
        (None, "unheard-of", 32768, 28231),
    ],
)
def test_tunnels_take_the_last_port_of_the_range_since_linux_7(
    local_range: str | None, release: str, first: int, count: int
) -> None:
    assert tunnel_ports(local_range, release) == (first, count)
