#!/usr/bin/env bash
# A real flanneld, and flannel's own code as a program that answers questions, built once from the Go module
# proxy; prints the folder that holds `flanneld` and `answers`. Needs Go: https://go.dev/dl, or Debian's golang.
set -euo pipefail
version=v0.28.10 # what `down`, the files and the tables of answers are held against
here=$(cd "$(dirname "$0")/flannel" && pwd)
folder=${XDG_CACHE_HOME:-$HOME/.cache}/flannel-ebpf/flannel-$version
if [ ! -x "$folder/flanneld" ] || [ "$here/answers.go" -nt "$folder/answers" ]; then
    command -v go > /dev/null || { echo "flannel.sh: no Go compiler on PATH" >&2; exit 1; }
    mkdir -p "$folder"
    source=$(cd "$here" && go mod download -json "github.com/flannel-io/flannel@$version" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    cp -r "$source" "$work/flannel"
    chmod -R u+w "$work/flannel"
    # One cloud's backend, whose library is large and not in every proxy.
    sed -i '/backend\/tencentvpc"/d' "$work/flannel/main.go"
    (cd "$work/flannel" && CGO_ENABLED=1 go build -mod=mod -trimpath -ldflags \
        "-s -w -X github.com/flannel-io/flannel/pkg/version.Version=$version" -o "$folder/flanneld.new" . >&2)
    (cd "$here" && CGO_ENABLED=0 go build -trimpath -o "$folder/answers" .)
    mv "$folder/flanneld.new" "$folder/flanneld"
fi
echo "$folder"
