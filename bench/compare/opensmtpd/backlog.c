/*
 * Preloaded into OpenSMTPD: its backlog of 5 is compiled in, and of 100 clients that connect at once most would wait for a
 * banner that never comes. With SYN cookies the kernel forgets a client whose last ACK finds the queue full, and the client
 * knows nothing of it until it speaks, which in SMTP it does second.
 *
 *	cc -O2 -shared -fPIC -o backlog.so backlog.c
 */
#define _GNU_SOURCE
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

int listen(int fd, int backlog)
{
	return syscall(SYS_listen, fd, backlog < 1024 ? 1024 : backlog);
}
