#!/bin/sh
# Generates api/v1 from the contract in proto/: `./generate.sh`; `./generate.sh --check` writes nothing and fails on a
# difference. protoc is that of the project's pinned environment (scripts/generate_proto.py), the plug-ins are those of
# tools/go.mod.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
module=ws-sidecar.dev/client
package="$module/api/v1;apiv1"

target=$here
if [ "${1:-}" = "--check" ]; then
	target=$(mktemp -d)
	trap 'rm -rf "$target"' EXIT
fi

mkdir -p "$here/build/bin"
GOBIN="$here/build/bin" go -C "$here/tools" install google.golang.org/protobuf/cmd/protoc-gen-go \
	google.golang.org/grpc/cmd/protoc-gen-go-grpc

cd "$root"
"${PYTHON:-python3}" -B -c '
import sys
sys.path.insert(0, "scripts")
import generate_proto
generate_proto.prepare_environment()
generate_proto.prepare_googleapis()
'

options=""
for proto in proto/sidecar/api/v1/*.proto; do
	options="$options --go_opt=M${proto#proto/}=$package --go-grpc_opt=M${proto#proto/}=$package"
done
# $options is meant to be split: it holds no spaces of its own.
.venv-proto/bin/python -m grpc_tools.protoc -Iproto -Ibuild/googleapis \
	--plugin=protoc-gen-go="$here/build/bin/protoc-gen-go" \
	--plugin=protoc-gen-go-grpc="$here/build/bin/protoc-gen-go-grpc" \
	--go_out="$target" --go_opt=module=$module \
	--go-grpc_out="$target" --go-grpc_opt=module=$module \
	$options proto/sidecar/api/v1/*.proto

if [ "$target" != "$here" ] && ! diff -r "$target/api/v1" "$here/api/v1"; then
	echo "clients/go/api is not what proto/ generates: run clients/go/generate.sh" >&2
	exit 1
fi
