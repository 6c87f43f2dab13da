#!/usr/bin/env bash
# Put flannel-ebpf with a Python environment of its own below DESTDIR/PREFIX.
#
# The environment is a virtual one (PEP 405) that is tied to /usr/bin/python3 and sees Debian's packages, because
# libbpf's binding is only there. It holds what is compiled for each Python in PYTHONS and, once, all that is not:
# so one tree serves several releases of Debian.
#
#   DESTDIR   staging folder, "" for this host      PREFIX   /usr/local, or /usr for a package
#   PYTHONS   "3.11 3.13"; default: /usr/bin/python3's
set -euo pipefail
cd "$(dirname "$0")/../.."

destdir=${DESTDIR:-} prefix=${PREFIX:-/usr/local}
own=$(/usr/bin/python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
pythons=${PYTHONS:-$own}
pip=${PIP:-.venv/bin/pip} python=${PYTHON:-.venv/bin/python}
home=$prefix/lib/flannel-ebpf
tree=$destdir$home
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

quietly() { "$@" > "$work/log" 2>&1 || { cat "$work/log" >&2; return 1; }; }
platforms=()
for tag in manylinux_2_17 manylinux_2_28 manylinux_2_34 manylinux2014; do
    platforms+=(--platform "${tag}_$(uname -m)")
done

quietly "$pip" wheel --disable-pip-version-check --no-deps --wheel-dir "$work" .
# etcd3 is published as source only; pip builds no source for another Python than its own.
sed '/^# Tests/,$d' tools/pins.txt > "$work/pins"
quietly "$pip" wheel --disable-pip-version-check --no-deps --wheel-dir "$work" "$(grep ^etcd3 "$work/pins")"
for abi in $pythons; do
    quietly "$pip" download --disable-pip-version-check --no-deps --only-binary=:all: --dest "$work" \
        --find-links "$work" --implementation cp --python-version "$abi" "${platforms[@]}" \
        --requirement "$work/pins"
done

install -d "$tree/bin"
rm -rf "$tree/lib"
put() { # PYTHON FOLDER WHEEL...
    quietly "$pip" install --disable-pip-version-check --root-user-action=ignore --no-deps --no-index \
        --no-compile --upgrade --only-binary=:all: --implementation cp --python-version "$1" \
        "${platforms[@]}" --target "$2" "${@:3}"
    rm -rf "$2/bin"
}
compiled=() pure=()
for wheel in "$work"/*.whl; do
    case $wheel in *-cp3*-cp3*) compiled+=("$wheel") ;; *) pure+=("$wheel") ;; esac
done
put "$own" "$tree/lib/shared" "${pure[@]}"
for abi in $pythons; do
    mine=()
    for wheel in "${compiled[@]}"; do
        case $wheel in *"-cp${abi/./}-cp${abi/./}-"*) mine+=("$wheel") ;; esac
    done
    put "$abi" "$tree/lib/python$abi/site-packages" "${mine[@]}"
    echo ../../shared > "$tree/lib/python$abi/site-packages/shared.pth"
done

find "$tree/lib" -type f -exec chmod 644 {} + # some wheels have every file executable

printf 'home = /usr/bin\ninclude-system-site-packages = true\nversion = %s\n' "$own" > "$tree/pyvenv.cfg"
ln -sf /usr/bin/python3 "$tree/bin/python3"
# -I: neither the caller's folder nor PYTHON* variables nor a user's packages reach a program that runs as root.
printf '#!%s/bin/python3 -I\nimport sys\n\nfrom flannel_ebpf.cli import main\n\nsys.exit(main())\n' "$home" \
    > "$tree/bin/flannel-ebpf"
chmod 755 "$tree/bin/flannel-ebpf"
ln -sf flannel-ebpf "$tree/bin/flanneld"

install -d "$destdir$prefix/bin"
ln -sf ../lib/flannel-ebpf/bin/flannel-ebpf "$destdir$prefix/bin/flannel-ebpf"
install -D -m 755 deploy/mk-docker-opts.sh "$tree/mk-docker-opts.sh"

"$python" tools/packages/man.py "$work/man"
install -D -m 644 -t "$destdir$prefix/share/man/man1" "$work"/man/*.1
install -D -m 644 "$work/man/completion.bash" "$destdir$prefix/share/bash-completion/completions/flannel-ebpf"
install -D -m 644 "$work/man/completion.zsh" "$destdir$prefix/share/zsh/vendor-completions/_flannel-ebpf"
