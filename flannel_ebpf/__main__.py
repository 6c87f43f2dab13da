"""`python -m flannel_ebpf` is `flannel-ebpf`."""

import sys

from flannel_ebpf.cli import main

sys.exit(main())
