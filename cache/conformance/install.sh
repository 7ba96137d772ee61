#!/bin/sh
# Installs the public conformance suite for HTTP caches, pinned, outside the source tree, and
# prints where. Nothing in the package is run by the installation.
set -eu
version=0.4.5
dir="${SPILLGATE_CONFORMANCE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/spillgate/http-cache-tests-$version}"
if [ ! -f "$dir/node_modules/http-cache-tests/cli.mjs" ]; then
	mkdir -p "$dir"
	cd "$dir"
	[ -f package.json ] || echo '{"private":true}' >package.json
	npm install --ignore-scripts --no-audit --no-fund --silent "http-cache-tests@$version" >&2
fi
echo "$dir/node_modules/http-cache-tests"
