# shellcheck shell=bash disable=SC2034 # some variables are for those who source this
# Sourced by the five scripts of each folder here, which are for one MTA:
#
#	install         brings it into $cache, outside of the tree; says why when it cannot be had
#	start PORT DIR  starts it on 127.0.0.1:PORT, everything it writes below DIR, delivering nowhere; DIR/pid holds the
#	                id of the process whose tree is measured, DIR/log what it says
#	stop DIR        ends that tree
#	class           discard: thrown away; accepted: stored, not synced before the 250; durable: on disk before the 250
#	version         one line; fails when it is not installed
#
# A file named holds, where there is one, has the most idle connections that make sense: where each is a process, takes much memory,
# or waits in a listen backlog that is too short for many at once.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
compare=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
name=$(basename "$here")
caches=${BENCH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/fastedge-bench}
cache=$caches/$name
RUN_LIMIT=${RUN_LIMIT:-180} # seconds that a server may live, should nobody stop it

has() { command -v "$1" >/dev/null; }

cannot() {
	echo "$name cannot be had here: $*" >&2
	exit 0
}

as_root() { [ "$(id -u)" = 0 ] || cannot "only root can install or start it"; }

# retried COMMAND… runs it once more with fresh lists of packages, should it fail: a new machine has none.
retried() { "$@" >&2 || { apt-get -qq update >&2 && "$@" >&2; }; }

# debian PACKAGE… installs what is not installed.
debian() {
	dpkg -s "$@" >/dev/null 2>&1 && return
	as_root
	has apt-get || cannot "there is no apt-get to install $*"
	retried env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" || cannot "apt-get install $* failed"
}

# unpacked PROGRAM PACKAGE… unpacks packages below $cache, because Debian has room for one MTA only and another one,
# or none, is installed. What they need beside that is named with them.
unpacked() {
	local program=$1
	shift
	[ ! -x "$cache/$program" ] || return 0
	as_root
	rm -rf "$cache"
	mkdir -p "$cache/debs"
	(cd "$cache/debs" && retried apt-get -qq -o APT::Sandbox::User=root download "$@") || cannot "apt-get download $* failed"
	for deb in "$cache"/debs/*.deb; do
		dpkg-deb -x "$deb" "$cache"
		dpkg-deb -f "$deb" Package Version >>"$cache/versions"
	done
	rm -r "$cache/debs"
}

# unpacked_version PACKAGE prints what unpacked found.
unpacked_version() { sed -n "/^Package: $1\$/{n;s/^Version: //p;}" "$cache/versions"; }

# npm_package NAME@VERSION installs a package and what it needs, and runs no script of theirs.
npm_package() {
	[ ! -e "$cache/node_modules/${1%@*}/package.json" ] || [ "$(npm_version "${1%@*}")" != "${1#*@}" ] || return 0
	has node || cannot "there is no node"
	has npm || cannot "there is no npm"
	mkdir -p "$cache"
	(cd "$cache" && timeout 300 npm install --no-save --no-package-lock --no-audit --no-fund --omit=optional --ignore-scripts "$1") >&2 ||
		cannot "npm install $1 failed"
}

npm_version() { node -p 'require(process.argv[1]).version' "$cache/node_modules/$1/package.json"; }

# serve DIR COMMAND… starts COMMAND in the background as the measured server.
serve() {
	local dir=$1
	shift
	cd "$dir"
	timeout -k 5 "$RUN_LIMIT" "$@" >"$dir/log" 2>&1 </dev/null &
	echo $! >"$dir/pid"
}

# apart DIR COMMAND… does the same in a mount namespace of its own, for those with paths and users compiled in. All of
# DIR/root/A/B is laid over /A/B there (which must exist); in DIR/root/etc are accounts named by $users, and no
# name server: whoever asks for a name finds the hosts file or is refused at once.
apart() {
	local dir=$1 user uid=59000 i
	shift
	mkdir -p "$dir/root/etc"
	cp /etc/passwd /etc/group "$dir/root/etc/"
	for user in ${users:-}; do
		uid=$((uid + 1))
		grep -q "^$user:" "$dir/root/etc/passwd" || echo "$user:x:$uid:$uid::/nonexistent:/usr/sbin/nologin" >>"$dir/root/etc/passwd"
		grep -q "^$user:" "$dir/root/etc/group" || echo "$user:x:$uid:" >>"$dir/root/etc/group"
	done
	echo "nameserver 127.0.0.1" >"$dir/root/etc/resolv.conf"
	echo "127.0.0.1 localhost" >"$dir/root/etc/hosts"
	for i in $(seq 0 255); do
		printf '127.0.0.%d client%d.client.example\n127.0.1.%d client1%03d.client.example\n' "$i" "$i" "$i" "$i"
	done >>"$dir/root/etc/hosts"
	# shellcheck disable=SC2016 # expanded by the shell within
	serve "$dir" unshare --mount --propagation private bash -euc '
		dir=$1
		shift
		cd "$dir/root"
		for path in etc/* var/* run; do
			[ ! -e "$path" ] || mount --bind "$path" "/$path"
		done
		cd "$dir"
		exec "$@"
	' apart "$dir" "$@"
}

# tree PID prints PID and all its descendants.
tree() {
	ps -eo pid=,ppid= | awk -v root="$1" '
		{ parent[$1] = $2 }
		END { for (p in parent) for (q = p; q > 1; q = parent[q]) if (q == root) { print p; break } }'
}

# alive PID… says whether any of them runs; whose parent has not asked for its end does not.
alive() { ps -o stat= -p "$(echo "$@" | tr ' ' ,)" | grep -qv '^Z'; }

# finish DIR ends the tree of DIR/pid, by force what does not follow within five seconds.
finish() {
	local dir=$1 pids
	[ -s "$dir/pid" ] || return 0
	mapfile -t pids < <(tree "$(<"$dir/pid")")
	[ ${#pids[@]} -gt 0 ] || return 0
	kill -TERM "$(<"$dir/pid")" 2>/dev/null || true
	for _ in $(seq 100); do
		alive "${pids[@]}" || break
		sleep 0.05
	done
	kill -KILL "${pids[@]}" 2>/dev/null || true
	rm -f "$dir/pid"
}
