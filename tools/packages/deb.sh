#!/usr/bin/env bash
# Build dist/flannel-ebpf_VERSION_ARCH.deb, for Debian 12 and 13, and have lintian look at it.
set -euo pipefail
cd "$(dirname "$0")/../.."
top=$PWD

tools/setup_packages.sh debhelper lintian dpkg-dev
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
tree=build/deb/flannel-ebpf-$version
rm -rf build/deb
mkdir -p "$tree" dist
git ls-files -z | xargs -0 cp --parents --target-directory "$tree"
git describe --always --exclude='*' --abbrev=12 --dirty=+ | tr -d '\n' > build/commit
install -D build/commit "$tree/flannel_ebpf/_programs/commit"
cp -r deploy/debian "$tree/debian"
cp deploy/systemd/flannel-ebpf.service "$tree/debian/"
cp deploy/default "$tree/debian/flannel-ebpf.default"

log=build/deb.log
if ! (cd "$tree" && PIP=$top/.venv/bin/pip PYTHON=$top/.venv/bin/python dpkg-buildpackage -b -us -uc) > "$log" 2>&1
then
    tail -40 "$log" >&2
    exit 1
fi
deb=$(ls build/deb/*.deb | grep -v dbgsym)
lintian --fail-on error,warning "$deb"
mv "$deb" dist/
echo "dist/$(basename "$deb"): $(du -h "dist/$(basename "$deb")" | cut -f1)"
