# shellcheck shell=bash
# Sourced by run, check and class: builds what is needed and has one server at a time running, its files in a temporary
# folder below $BENCH_DIR (default: bench itself), so that all spools share one disk.
#
# start NAME PORT   starts a server pinned to $SERVER_CORE; sets $root, the process whose tree is measured, and $dir
# stop              ends it and removes what it stored
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. bench/compare/adapter.sh
. bench/compare/client.sh

BENCH_DIR=${BENCH_DIR:-$PWD/bench}
SERVER_CORE=${SERVER_CORE:-0}
GENERATOR_CORE=${GENERATOR_CORE:-1}

root= # process id of the server under measurement
side= # process id of a helper that runs beside it: perf, strace or the generator
work=
dir=

say() { echo "compare: $*" >&2; }
die() { say "$*"; exit 1; }

need() { # need COMMAND PACKAGE
	has "$1" || die "$1 is missing; on Debian: apt-get install -y $2"
}

setup() {
	need go golang-go
	need taskset util-linux
	need ps procps
	# Every connection is a descriptor of the server's and one of the generator's.
	ulimit -n 32768 2>/dev/null || ulimit -n "$(ulimit -Hn)"
	[ "$(nproc)" -ge 2 ] || die "needs two cores, one for the server and one for the generator"
	# Two at once would measure each other. The lock ends with the last process that inherited it.
	need flock util-linux
	exec 9<bench/compare/lib.sh
	flock -n 9 || die "another measurement is running"
	work=$(mktemp -d "$BENCH_DIR/compare.XXXXXX")
	trap cleanup EXIT
	trap 'exit 130' INT TERM
	chmod 755 "$work" # servers that give their rights up must reach their folders
	go build -o "$work/report" ./bench/report
}

cleanup() {
	[ -z "$side" ] || kill -TERM "$side" 2>/dev/null || true
	stop || true
	[ -z "$work" ] || rm -rf "$work"
}

# all_servers prints the servers that are compared when nobody says which.
all_servers() { echo fastedge canned smtp-sink postfix exim opensmtpd chasquid haraka go-smtp smtp-server aiosmtpd; }

# install_server NAME fails when it cannot be had here, and says in $why.
install_server() {
	[ -x "bench/compare/$1/start" ] || die "there is no server $1"
	why=
	if ! "bench/compare/$1/install" >"$work/install" 2>&1; then
		cat "$work/install" >&2
		die "$1/install failed"
	fi
	"bench/compare/$1/version" >/dev/null 2>&1 || { why=$(sed -n 's/.*cannot be had here: //p' "$work/install" | tail -n 1); return 1; }
}

# pipelines says whether the server whose EHLO reply send_marked has last seen offers PIPELINING. One that does not is not sent
# command groups (RFC 2920 section 3.1).
pipelines() { grep -q '^250[- ]PIPELINING' <<<"$ehlo"; }

answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

start() {
	# With SO_REUSEPORT, which fastedge uses, a second server would start and share the connections in silence.
	! answers "$2" || die "something listens on port $2 already; choose another with PORT="
	dir=$work/$1
	rm -rf "$dir"
	mkdir "$dir"
	taskset -c "$SERVER_CORE" "bench/compare/$1/start" "$2" "$dir" 9>&-
	root=$(<"$dir/pid")
	for _ in $(seq 200); do
		! answers "$2" || return 0
		alive "$root" || break
		sleep 0.05
	done
	tail -n 20 "$dir/log" >&2
	die "$1 does not answer on port $2"
}

stop() {
	[ -n "$root" ] || return 0
	finish "$dir"
	root=
	rm -rf "$dir"
}
