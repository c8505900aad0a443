#!/bin/sh
# Lints the client and its examples with Go's own tools: gofmt, go vet, staticcheck. Writes nothing but build/.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$here/build/bin"
GOBIN="$here/build/bin" go -C "$here/tools" install honnef.co/go/tools/cmd/staticcheck

for folder in "$here" "$here/../../examples/agent_go" "$here/../../examples/http_go"; do
	cd "$folder"
	unformatted=$(gofmt -l .)
	if [ -n "$unformatted" ]; then
		echo "gofmt would change: $unformatted" >&2
		exit 1
	fi
	go vet ./...
	"$here/build/bin/staticcheck" -checks all,-ST1000 ./...
	go mod tidy -diff
done
