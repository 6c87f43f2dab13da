#!/usr/bin/env bash
# What runs inside the virtual machine, as `init` has made its root: stages of tests, told in lines that begin
# with "kernels: ". The line "kernels: passed" comes when all of them have. From the kernel command line:
# $checkout, $kernel (the folder of fetch.sh); from $kernel/settings: STAGES, JOBS, LIMIT (seconds), RUN.
set -uo pipefail

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp LC_ALL=C.UTF-8
mkdir -p /dev/pts /dev/shm "/lib/modules/$(uname -r)" /run/lock
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount --bind "$kernel/lib/modules/$(uname -r)" "/lib/modules/$(uname -r)"
if [ "$snapshot" != "$checkout" ]; then
    # the snapshot stands where the checkout is, with the checkout's Python environment
    mkdir /run/venv
    mount --bind "$checkout/.venv" /run/venv
    mount --bind "$snapshot" "$checkout"
    mount --bind /run/venv "$checkout/.venv"
fi
if [ -d /opt-python ]; then export PYTHONPATH=/opt-python:$checkout; fi # the arm64 root's
ip link set lo up
modprobe tun # no udev here: the module itself makes /dev/net/tun
# shellcheck source=/dev/null
. "$kernel/settings"
cd "$checkout" || exit

failed=0
# stage NAME COMMAND...: the last line of what it prints is its result
stage() {
    local name=$1 limit status
    shift
    limit=$((LIMIT - $(cut -d. -f1 /proc/uptime)))
    [[ " $STAGES " == *" $name "* ]] || return 0
    echo "kernels: $name begins"
    timeout --kill-after=10 "$limit" "$@" 2>&1 | tee /tmp/said
    status=$?
    [ "$status" = 0 ] || failed=1
    [ "$status" != 124 ] || echo "not ended after $limit s" >> /tmp/said
    echo "kernels: result: $name: $status: $(grep -v '^$' /tmp/said | tail -n 1 | tr -d '=')"
}
tests() { .venv/bin/python -m pytest -p no:cacheprovider -n "$JOBS" --dist loadgroup --tb=short --color=no "$@"; }
export -f tests
export JOBS

echo "kernels: booted $(uname -r) in $(cut -d' ' -f1 /proc/uptime) s"
if [ -n "$RUN" ]; then stage run bash -c "$RUN"; fi
stage features .venv/bin/python tools/kernels/features.py
stage objects bash -c "tests --quiet tests/kernels/test_objects.py --objects='${kernel%/*}/objects' --compiled='${kernel%/*}/objects/tests'"
stage nodes bash -c 'tests -v tests/kernels/test_nodes.py --timeout=400'
stage devices bash -c 'tests -v tests/kernels/test_devices.py --timeout=400'
stage rights bash -c 'tests -v tests/kernels/test_rights.py --timeout=400'
stage bpf bash -c "tests --quiet tests/bpf --compiled='${kernel%/*}/objects/tests' --fuzz-frames=300 \
    --hypothesis-profile=emulated --timeout=400"
[ "$failed" = 1 ] || echo "kernels: passed"
sync
echo o > /proc/sysrq-trigger
sleep 10
