#!/usr/bin/env bash
# Build kube-apiserver and kube-proxy from the Go module proxy into a folder below ~/.cache, once, and print it.
#
#   tools/kube/build.sh        needs Go 1.24 or newer; 10 minutes on two cores, 2 GB of memory
#
# Downloads, once: Kubernetes' modules into Go's module cache (0.5 GB). Kubernetes' go.mod has replace directives,
# which `go install` refuses; the go.mod beside this script requires the modules instead.
set -euo pipefail

version=v1.34.1
here=$(cd "$(dirname "$0")" && pwd)
work=${FLANNEL_KUBE:-$HOME/.cache/flannel-ebpf/kubernetes-$version}
names="-X k8s.io/component-base/version.gitVersion=$version"
names+=" -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=34"
mkdir -p "$work"
for program in kube-apiserver kube-proxy; do
    [ -x "$work/$program" ] && continue
    command -v go > /dev/null || { echo "$program: needs Go (apt install golang)" >&2; exit 1; }
    echo "building $program $version, into $work" >&2
    rm -rf "$work/src" && mkdir "$work/src" && cp "$here"/go.mod "$here"/kube.go "$work/src" # go completes go.mod
    (cd "$work/src" && GOFLAGS='-mod=mod -buildvcs=false' CGO_ENABLED=0 \
        go build -trimpath -ldflags "-s -w $names" -o "$work/$program.new" "k8s.io/kubernetes/cmd/$program")
    mv "$work/$program.new" "$work/$program"
    rm -rf "$work/src"
done
echo "$work"
