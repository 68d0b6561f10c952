# shellcheck shell=bash disable=SC2154 # $work is of lib.sh
# The one place that knows the load generator. Sourced by run and check.
#
# generate PORT FLAG…   applies a load to 127.0.0.1:PORT, with the flags of fastedge loadtest run, and prints one line of
#                       JSON: messages, sessions, errors, first_error, seconds, per_second, ack_p50_ms, ack_p99_ms, gen_cpu_us
# hold PORT N SECONDS   opens N connections, says EHLO on each and holds them

build_generator() { go build -o "$work/gen" ./bench/gen; }

can_rate() { false; } # whether generate knows --rate

generate() {
	local port=$1 connections=100 messages=0 args=()
	shift
	while [ $# -gt 0 ]; do
		case $1 in
		--connections) connections=$2 ;;
		--messages) messages=$2 ;;
		--per-connection) args+=(-per-connection "$2") ;;
		--size) args+=(-size "$(numfmt --from=iec-i "${2%B}")") ;;
		--pipelining)
			case $2 in
			off) args+=(-mode plain) ;;
			group) args+=(-mode pipelined) ;;
			tight) args+=(-mode tight) ;;
			esac
			;;
		--sources) args+=(-sources 200) ;;
		--sessions-only)
			args+=(-session-only)
			shift
			continue
			;;
		*) die "generate: $1" ;;
		esac
		shift 2
	done
	taskset -c "$GENERATOR_CORE" timeout -k 5 "$RUN_LIMIT" "$work/gen" -addr "127.0.0.1:$port" -connections "$connections" \
		-messages $(((messages + connections - 1) / connections)) "${args[@]}"
}

hold() {
	exec taskset -c "$GENERATOR_CORE" timeout -k 5 $(($3 + 30)) "$work/gen" -addr "127.0.0.1:$1" -idle "$2" -sources 200 -hold "$3s"
}
