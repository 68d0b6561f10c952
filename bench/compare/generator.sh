# shellcheck shell=bash disable=SC2154 # $work is of lib.sh
# The one place that knows the load generator, which is fastedge loadtest, and the dialer, which does what that can't. Sourced by run
# and check.
#
# generate PORT FLAG…   applies a load to 127.0.0.1:PORT, with the flags of loadtest run, and prints one line of JSON: messages,
#                       sessions, errors, first_error, seconds, per_second, ack_p50_ms, ack_p99_ms, gen_cpu_us; fails on errors
# hold PORT N SECONDS   opens N connections, says EHLO on each and holds them
# dial VERB FLAG…       becomes the dialer

# GENERATOR names a binary to use instead of this commit's.
build_generator() {
	if [ -n "${GENERATOR:-}" ]; then
		cp "$GENERATOR" "$work/generator"
	else
		go build -o "$work/generator" ./cmd/fastedge
	fi
	(cd bench/compare/gopeers && go build -o "$work/dialer" ./dialer)
}

# loadtest PORT FLAG… becomes the generator, so that who starts it in the background can end it by $!; and cleanup by what it notes.
loadtest() {
	echo "$BASHPID" >"$work/generator.pid"
	exec taskset -c "$GENERATOR_CORE" timeout -k 5 "$RUN_LIMIT" "$work/generator" loadtest run "127.0.0.1:$1" --quiet --workers 1 "${@:2}"
}

generate() {
	local json
	rm -f "$work/run.json"
	(loadtest "$@" --out "$work/run.json") >"$work/generator.log" 2>&1 || true # the verdict is made below
	rm -f "$work/generator.pid"
	json=$("$work/report" figures "$work/run.json") || { tail -n 3 "$work/generator.log"; return 1; }
	echo "$json"
	[[ $json == *'"errors":0,'* ]]
}

hold() { loadtest "$1" --connections "$2" --hold "$3s" --sources 127.0.1.0/24; }

dial() {
	echo "$BASHPID" >"$work/generator.pid"
	exec taskset -c "$GENERATOR_CORE" timeout -k 5 "$RUN_LIMIT" "$work/dialer" "$@"
}
