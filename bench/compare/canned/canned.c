/*
 * canned is the floor of the comparison: a single-threaded epoll server that answers SMTP with canned
 * replies, parses next to nothing and stores nothing. What it costs is what the kernel costs; no server that speaks
 * the same dialogue over the same sockets can be much cheaper.
 *
 * It is no SMTP server. It believes that its client is the load generator: that a command begins with its own letter, that
 * DATA ends a command group, and that the end of data stands at the end of a read or just before the next group.
 *
 *	cc -O2 -o canned canned.c && ./canned PORT SECONDS
 *
 * Listens on 127.0.0.1:PORT and ends itself after SECONDS.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum state {
	COMMANDS, /* reading command lines */
	DATA      /* 354 was sent, the end of data was not seen */
};

/* One a connection, indexed by file descriptor. tail holds the last bytes of message data that earlier reads gave,
 * so that an end of data cut in two by the network is still seen. */
struct conn {
	unsigned char state;
	unsigned char midline; /* the last read ended inside a command line */
	unsigned char tail_len;
	char tail[4];
};

#define BANNER "220 canned.example ESMTP\r\n"
#define EHLO   "250-canned.example\r\n250-PIPELINING\r\n250 8BITMIME\r\n"
#define OK     "250 2.0.0 Ok\r\n"
#define START  "354 Start mail input; end with <CRLF>.<CRLF>\r\n"
#define QUEUED "250 2.6.0 Message queued as 00000000000000000000\r\n"
#define BYE    "221 2.0.0 Bye\r\n"
#define WHAT   "500 5.5.2 Unknown\r\n"

static struct conn *conns;
static int max_conns;
static char in[256 << 10];

/* Replies to one read are collected here and written at once. A read holds at most sizeof in / 2 lines; the generator never
 * sends more than a handful, and add() drops what does not fit rather than growing. */
static char out[64 << 10];
static size_t out_len;

static void add(const char *reply, size_t n)
{
	if (out_len + n <= sizeof out) {
		memcpy(out + out_len, reply, n);
		out_len += n;
	}
}
#define ADD(reply) add(reply, sizeof(reply) - 1)

/* data_end returns how many bytes of p belong to the message data, terminator included, or -1 when the end of data
 * is not there. The usual case costs one comparison: the terminator is the end of the read. */
static ssize_t data_end(struct conn *c, const char *p, size_t n)
{
	char joined[8];
	size_t k = n < 4 ? n : 4;
	const char *hit, *from;

	if (n >= 5 && memcmp(p + n - 5, "\r\n.\r\n", 5) == 0)
		return n;

	/* Cut in two by the network: the end of what we had and the beginning of what came. */
	memcpy(joined, c->tail, c->tail_len);
	memcpy(joined + c->tail_len, p, k);
	hit = memmem(joined, c->tail_len + k, "\r\n.\r\n", 5);
	if (hit)
		return hit + 5 - joined - c->tail_len;

	/* The next command group came along: look for the terminator just before it. */
	if (n >= 6 && memcmp(p + n - 6, "DATA\r\n", 6) == 0) {
		from = n > 512 ? p + n - 512 : p;
		hit = memmem(from, p + n - from, "\r\n.\r\n", 5);
		if (hit)
			return hit + 5 - p;
	}

	if (n >= 4) {
		memcpy(c->tail, p + n - 4, 4);
		c->tail_len = 4;
	} else {
		size_t all = c->tail_len + n, drop = all > 4 ? all - 4 : 0;
		memcpy(c->tail, joined + drop, all - drop);
		c->tail_len = all - drop;
	}
	return -1;
}

/* serve answers one read; it returns 0 when the connection is to be closed. */
static int serve(struct conn *c, const char *p, size_t n)
{
	const char *end = p + n, *lf;
	ssize_t used;

	while (p < end) {
		if (c->state == DATA) {
			used = data_end(c, p, end - p);
			if (used < 0)
				return 1;
			p += used;
			c->state = COMMANDS;
			ADD(QUEUED);
			continue;
		}
		lf = memchr(p, '\n', end - p);
		if (c->midline) { /* the line was answered when it began */
			if (!lf)
				return 1;
			c->midline = 0;
			p = lf + 1;
			continue;
		}
		switch (*p) {
		case 'E': case 'H':
			ADD(EHLO);
			break;
		case 'M': case 'R': case 'N':
			ADD(OK);
			break;
		case 'D':
			ADD(START);
			c->state = DATA;
			memcpy(c->tail, "\r\n", 2); /* an empty body is CRLF "." CRLF too */
			c->tail_len = 2;
			break;
		case 'Q':
			ADD(BYE);
			return 0;
		default:
			ADD(WHAT);
		}
		if (!lf) {
			c->midline = 1;
			return 1;
		}
		p = lf + 1;
	}
	return 1;
}

static void die(const char *what)
{
	perror(what);
	exit(1);
}

int main(int argc, char **argv)
{
	struct sockaddr_in sa = {.sin_family = AF_INET};
	struct epoll_event ev, events[256];
	struct rlimit lim;
	int l, ep, i, n, fd, on = 1, more;
	ssize_t got;

	if (argc != 3 || atoi(argv[1]) <= 0 || atoi(argv[2]) <= 0) {
		fprintf(stderr, "usage: canned PORT SECONDS\n");
		return 2;
	}
	alarm(atoi(argv[2])); /* SIGALRM ends us: never left running by mistake */

	if (getrlimit(RLIMIT_NOFILE, &lim) < 0)
		die("getrlimit");
	max_conns = lim.rlim_cur > 65536 ? 65536 : (int)lim.rlim_cur;
	conns = calloc(max_conns, sizeof *conns);

	sa.sin_port = htons(atoi(argv[1]));
	sa.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	l = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	setsockopt(l, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	if (bind(l, (struct sockaddr *)&sa, sizeof sa) < 0 || listen(l, 4096) < 0)
		die("listen");
	ep = epoll_create1(0);
	ev.events = EPOLLIN;
	ev.data.fd = l;
	if (epoll_ctl(ep, EPOLL_CTL_ADD, l, &ev) < 0)
		die("epoll_ctl");

	for (;;) {
		n = epoll_wait(ep, events, 256, -1);
		if (n < 0 && errno != EINTR)
			die("epoll_wait");
		for (i = 0; i < n; i++) {
			fd = events[i].data.fd;
			if (fd == l) {
				while ((fd = accept4(l, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
					if (fd >= max_conns) {
						close(fd);
						continue;
					}
					memset(&conns[fd], 0, sizeof conns[fd]);
					ev.events = EPOLLIN;
					ev.data.fd = fd;
					epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev);
					if (write(fd, BANNER, sizeof BANNER - 1) < 0)
						close(fd);
				}
				continue;
			}
			got = read(fd, in, sizeof in);
			if (got < 0 && errno == EAGAIN)
				continue;
			if (got <= 0) {
				close(fd);
				continue;
			}
			out_len = 0;
			more = serve(&conns[fd], in, got);
			/* Replies are tens of bytes to a client that waits for them: a short write means it is broken. */
			if (out_len && write(fd, out, out_len) != (ssize_t)out_len)
				more = 0;
			if (!more)
				close(fd);
		}
	}
}
