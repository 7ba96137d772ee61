#!/bin/sh
# Installs the public conformance suite for HTTP caches, pinned, outside the source tree, and
# prints where. Nothing in the package is run by the installation.
set -eu
version=0.4.5
dir="${SPILLGATE_CONFORMANCE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/spillgate/http-cache-tests-$version}"
suite="$dir/node_modules/http-cache-tests"
if [ ! -f "$suite/cli.mjs" ]; then
	mkdir -p "$dir"
	# Beside its place, and moved there when it is whole: what was ended half way must not pass for
	# it, and another checkout may be at the same.
	new=$(mktemp -d "$dir/new.XXXXXX")
	trap 'rm -rf "$new"' EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM
	echo '{"private":true}' >"$new/package.json"
	(cd "$new" && npm install --ignore-scripts --no-audit --no-fund --silent "http-cache-tests@$version" >&2)
	if [ ! -f "$suite/cli.mjs" ]; then
		rm -rf "$dir/node_modules"
		mv "$new/node_modules" "$dir/node_modules"
	fi
fi
echo "$suite"
