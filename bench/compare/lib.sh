# shellcheck shell=bash disable=SC2034,SC2153,SC2154 # some variables are set here and read by those who source this, and the other way round
# Sourced by run, check and class: builds what is needed and has one server at a time running, its files in a temporary
# folder below $BENCH_DIR (default: bench itself), so that all spools share one disk.
#
# start NAME PORT   starts a server pinned to $SERVER_CORE; sets $root, the process whose tree is measured, and $dir; fails when it
#                   does not answer
# stop              ends it and removes what it stored
# establish NAME    finds its class by strace
# calm              waits, for $CALM seconds at most, until nobody else uses the machine
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit
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

need() { # need COMMAND PACKAGE: installs it where that is possible
	has "$1" || (debian "$2") || true
	has "$1" || die "$1 is missing; on Debian: apt-get install -y $2"
}

setup() {
	has go || die "go is missing"
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
	[ ! -s "$work/generator.pid" ] || kill -TERM "$(<"$work/generator.pid")" 2>/dev/null || true
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
	say "$1 does not answer on port $2"
	return 1
}

stop() {
	[ -n "$root" ] || return 0
	finish "$dir"
	root=
	rm -rf "$dir"
}

# calm: the cores were idle for 95 % of a second.
calm() {
	local idle total idle2 total2
	for _ in $(seq "${CALM:-0}"); do
		read -r idle total <<<"$(cores)"
		sleep 1
		read -r idle2 total2 <<<"$(cores)"
		[ $(((idle2 - idle) * 100)) -lt $(((total2 - total) * 95)) ] || return 0
	done
}

# cores prints how long the cores have been idle, waiting for a disk included, and how long they have been there.
cores() { awk '/^cpu / { for (i = 2; i <= 9; i++) t += $i; print $5 + $6, t }' /proc/stat; }

# establish NAME: what a server has done with a message when it says 250. Three messages go in, one after the other, while
# strace watches all processes. Leaves the trace in $work/trace, the marks in $marks and the reply to EHLO in $ehlo.
establish() {
	need strace strace
	local attach=() pid
	marks=("mark-$RANDOM$RANDOM-a" "mark-$RANDOM$RANDOM-b" "mark-$RANDOM$RANDOM-c")
	start "$1" "$PORT"
	for pid in $(tree "$root"); do attach+=(-p "$pid"); done
	timeout -k 5 60 strace -f -yy -s 4096 -o "$work/trace" "${attach[@]}" -e "trace=$TRACED" 2>"$work/strace" &
	side=$!
	sleep 1 # to attach to everyone
	kill -0 "$side" 2>/dev/null || die "strace: $(tail -n 3 "$work/strace")"
	send_marked "$PORT" "${marks[@]}" || die "$1 does not take a message: $(tail -n 5 "$dir/log")"
	sleep 0.5
	kill -INT "$side"
	wait "$side" 2>/dev/null || true
	side=
	stop
}
TRACED=open,openat,creat,write,writev,pwrite64,pwritev,pwritev2,sendto,sendmsg,fsync,fdatasync,sync,syncfs,rename,renameat,renameat2,link,linkat

# facts prints what a reader must know about the machine, as JSON.
facts() {
	local dirty=false
	git diff --quiet HEAD -- . ':!bench' ':!*.md' 2>/dev/null || dirty=true
	cat <<-END
		{
		  "date": "$(date -u +%Y-%m-%d)",
		  "commit": "$(git rev-parse --short=12 HEAD)",
		  "uncommitted_changes": $dirty,
		  "cpu": "$(sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo | head -n 1)",
		  "cores": $(nproc),
		  "kernel": "$(uname -sr)",
		  "file_system": "$(df --output=fstype "$work" | tail -n 1)",
		  "go": "$(go env GOVERSION)"
		}
	END
}
