from __future__ import annotations

import pytest

from flannel_ebpf.commands.diagnose.dump import without_secrets


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("FLANNELD_ETCD_PASSWORD=hunter2\n", "FLANNELD_ETCD_PASSWORD=(left out)\n"),
        ("up --etcd-password=hunter2 --v=1", "up --etcd-password=(left out) --v=1"),
        ('{"PSK": "hunter2", "Port": 1}', '{"PSK": "(left out)", "Port": 1}'),
        ("token: hunter2", "token: (left out)"),
        ("--etcd-keyfile=/etc/key.pem", "--etcd-keyfile=/etc/key.pem"),
        ("-----BEGIN EC PRIVATE KEY-----\nhunter2\n-----END EC PRIVATE KEY-----", "(private key left out)"),
    ],
)
def test_secrets_are_left_out(text: str, kept: str) -> None:
    assert without_secrets(text) == kept
