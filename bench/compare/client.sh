# shellcheck shell=bash disable=SC2034 # some variables are for those who source this
# A small SMTP client, sourced by check and class: one command at a time, nothing that a load generator could hide.

# reply reads one reply from descriptor 3 into $reply; it must begin with the digit given.
reply() {
	local line
	reply=
	while :; do
		IFS= read -r -t 10 line <&3 || { echo "no reply${reply:+ after $reply}" >&2; return 1; }
		line=${line%$'\r'}
		reply+=${reply:+$'\n'}$line
		[ "${line:3:1}" = - ] || break
	done
	[ "${reply:0:1}" = "$1" ] || { echo "unexpected: $reply" >&2; return 1; }
}

say_to() { printf '%s\r\n' "$1" >&3; }

# send_marked PORT MARK… sends in one session a message for each MARK in its body. Sets $ehlo to
# the reply to EHLO.
send_marked() {
	local port=$1 mark
	shift
	exec 3<>"/dev/tcp/127.0.0.1/$port"
	reply 2
	say_to "EHLO client.test"
	reply 2
	ehlo=$reply
	for mark in "$@"; do
		say_to "MAIL FROM:<sender@client.test>"
		reply 2
		say_to "RCPT TO:<recipient@bench.test>"
		reply 2
		say_to DATA
		reply 3
		printf 'From: <sender@client.test>\r\nSubject: a mark\r\n\r\nA line that says %s.\r\n.\r\n' "$mark" >&3
		reply 2
	done
	say_to QUIT
	reply 2
	exec 3>&-
}
