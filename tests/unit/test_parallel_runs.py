"""What `make test` builds on: a parallel run leaves tests of one group to one worker."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

GROUPED = """
import pytest

@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("number", range(8))
def test(number): pass
"""


def test_tests_of_one_group_stay_with_one_worker(tmp_path: Path) -> None:
    """Else every worker would build a file's labs again: slow, and nothing would say so."""
    (tmp_path / "test_grouped.py").write_text(GROUPED)
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-n", "2", "--dist", "loadgroup", "-c", "/dev/null", tmp_path],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(set(re.findall(r"\[(gw\d)\] .*PASSED", ended.stdout))) == 1, ended.stdout
