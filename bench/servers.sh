# Sourced by bench/server and bench/idle: builds what is measured, starts and ends one server at a time.
#
# start NAME PORT   starts a server pinned to $SERVER_CORE; sets $root, the process whose tree is measured
# stop              ends it and removes what it stored
# class NAME        durable: on disk before the 250; discard: thrown away
#
# Everything lives in $work, a temporary folder in $BENCH_DIR (default: bench itself), so that all spools share one
# disk. Every process is started under timeout(1) and ended by its id, also on errors.

BENCH_DIR=${BENCH_DIR:-$PWD/bench}
SERVER_CORE=${SERVER_CORE:-0}
GEN_CORE=${GEN_CORE:-1}
RUN_LIMIT=${RUN_LIMIT:-120} # seconds that any one process may live

root= # process id of the server under measurement
side= # process id of a helper that runs beside it: perf, strace or gen
work=

say() { echo "bench: $*" >&2; }
die() { say "$*"; exit 1; }

need() { # need COMMAND PACKAGE
	command -v "$1" >/dev/null || die "$1 is missing; on Debian: apt-get install -y $2"
}

setup() {
	PATH=$PATH:/usr/sbin:/sbin
	need go golang-go
	need taskset util-linux
	need pgrep procps
	# fastedge wants descriptors for all connections that its configuration allows, and some more.
	ulimit -n 32768 2>/dev/null || ulimit -n "$(ulimit -Hn)"
	max_connections=$(($(ulimit -n) - 2000))
	[ "$max_connections" -le 20000 ] || max_connections=20000
	[ "$(nproc)" -ge 2 ] || die "needs two cores, one for the server and one for the generator"
	# Two at once would measure each other. The lock ends with the last process that inherited it.
	need flock util-linux
	exec 9<bench/servers.sh
	flock -n 9 || die "another measurement is running"
	work=$(mktemp -d "$BENCH_DIR/fastedge-bench.XXXXXX")
	trap cleanup EXIT
	trap 'exit 130' INT TERM
	# Postfix gives its rights up and must still reach its queue.
	chmod 755 "$work"
	go build -o "$work/gen" ./bench/gen
	go build -o "$work/report" ./bench/report
}

cleanup() {
	[ -z "$side" ] || kill -TERM "$side" 2>/dev/null || true
	stop || true
	[ -z "$work" ] || rm -rf "$work"
}

build() { # build NAME…
	local s
	for s in "$@"; do
		case $s in
		fastedge)
			# FASTEDGE names a binary to measure instead, say of an older commit.
			if [ -n "${FASTEDGE:-}" ]; then
				cp "$FASTEDGE" "$work/fastedge"
			else
				go build -o "$work/fastedge" ./cmd/fastedge
			fi
			;;
		canned)
			need cc gcc
			cc -O2 -o "$work/canned" bench/canned/canned.c
			;;
		smtp-sink) need smtp-sink postfix ;;
		postfix)
			need postconf postfix
			[ "$(id -u)" = 0 ] || die "Postfix's master must be started by root; leave it out with SERVERS=\"fastedge canned smtp-sink\""
			;;
		*) die "unknown server $s" ;;
		esac
	done
}

class() {
	case $1 in
	fastedge | postfix) echo durable ;;
	*) echo discard ;;
	esac
}

gen() { taskset -c "$GEN_CORE" timeout -k 5 "$RUN_LIMIT" "$work/gen" "$@"; }

# tree PID prints PID and all its descendants.
tree() {
	echo "$1"
	local child
	for child in $(pgrep -P "$1"); do tree "$child"; done
}

answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

start() {
	local name=$1 port=$2 dir=$work/srv-$1 i
	rm -rf "$dir"
	mkdir "$dir"
	# With SO_REUSEPORT, which fastedge uses, a second server would start and share the connections in silence.
	! answers "$port" || die "something listens on port $port already; choose another with PORT="
	"start_${name//-/_}" "$port" "$dir"
	for i in $(seq 100); do
		! answers "$port" || return 0
		kill -0 "$root" 2>/dev/null || break
		sleep 0.1
	done
	tail -n 20 "$dir/log" >&2
	die "$name does not answer on port $port"
}

# run DIR COMMAND… starts COMMAND as the measured server.
run() {
	local dir=$1
	shift
	(cd "$dir" && exec timeout -k 5 "$RUN_LIMIT" taskset -c "$SERVER_CORE" "$@") >"$dir/log" 2>&1 &
	root=$!
}

stop() {
	[ -n "$root" ] || return 0
	local pids
	pids=$(tree "$root")
	kill -TERM "$root" 2>/dev/null || true
	wait "$root" 2>/dev/null || true
	root=
	# Whoever has not followed its parent (Postfix's children end in their own time) is ended here.
	kill -KILL $pids 2>/dev/null || true
	rm -rf "$work"/srv-*
}

start_fastedge() {
	cat >"$2/fastedge.toml" <<-END
		hostname  = "mx.bench.example"
		state_dir = "$2/state"

		[[listen]]
		name = "bench"
		address = "127.0.0.1:$1"
		protocol = "smtp"
		tls = "off"
		relay_from = ["127.0.0.0/8"]

		[limits]
		connections = $max_connections

		[queue]
		engine = "spool"
		durability = "fsync"

		[relay]
		next_hop = []

		[admin]
		http = ""
	END
	run "$2" "$work/fastedge" serve -c "$2/fastedge.toml"
}

start_canned() { run "$2" "$work/canned" "$1" "$RUN_LIMIT"; }

start_smtp_sink() {
	local user=()
	[ "$(id -u)" != 0 ] || user=(-u nobody) # it refuses to run as root
	run "$2" smtp-sink "${user[@]}" "127.0.0.1:$1" 1024
}

# A Postfix of its own, beside whatever is installed: own configuration, queue and log below $work, nothing listening
# but smtpd on loopback. All mail is put on hold, so that no delivery is measured: the message is received, written
# to the queue and synced, as in fastedge without a next hop. Process limits are high enough for all connections.
start_postfix() {
	local d=$2 q
	mkdir -p "$d/conf" "$d/data" "$d/queue/pid"
	chown postfix "$d/data"
	for q in active bounce corrupt defer deferred flush hold incoming private saved trace maildrop public; do
		mkdir -m 700 "$d/queue/$q"
		chown postfix "$d/queue/$q"
	done
	chgrp postdrop "$d/queue/maildrop" "$d/queue/public"
	chmod 730 "$d/queue/maildrop"
	chmod 710 "$d/queue/public"
	cat >"$d/conf/main.cf" <<-END
		compatibility_level = 3.6
		queue_directory = $d/queue
		data_directory = $d/data
		maillog_file_prefixes = $d
		maillog_file = $d/maillog
		myhostname = mx.bench.example
		mydestination = bench.example
		inet_interfaces = 127.0.0.1
		inet_protocols = ipv4
		mynetworks = 127.0.0.0/8
		alias_maps =
		alias_database =
		local_recipient_maps =
		default_process_limit = 150
		smtpd_peername_lookup = no
		smtpd_client_connection_count_limit = 0
		smtpd_client_restrictions = static:HOLD
		smtpd_recipient_restrictions = permit_mynetworks, reject
		default_transport = error:held
	END
	cat >"$d/conf/master.cf" <<-END
		127.0.0.1:$1 inet n - n - - smtpd
		cleanup unix n - n - 0 cleanup
		qmgr unix n - n 300 1 qmgr
		rewrite unix - - n - - trivial-rewrite
		bounce unix - - n - 0 bounce
		defer unix - - n - 0 bounce
		trace unix - - n - 0 bounce
		proxymap unix - - n - - proxymap
		anvil unix - - n - 1 anvil
		error unix - - n - - error
		retry unix - - n - - error
		postlog unix-dgram n - n - 1 postlogd
	END
	run "$d" "$(postconf -h daemon_directory)/master" -c "$d/conf" -d
}

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
		  "go": "$(go env GOVERSION)",
		  "postfix": "$(postconf -h mail_version 2>/dev/null)"
		}
	END
}
