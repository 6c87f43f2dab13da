/*
 * The traffic that no common generator makes: connections per second, and UDP with a sender and a receiver that
 * are much faster than the way between them.
 *
 *     traffic crr-server PORT               answer connect-request-response
 *     traffic crr IP PORT WORKERS           make such transactions
 *     traffic rr-server PORT                answer on kept connections, one at a time
 *     traffic rr IP PORT WORKERS            ask on one (sockperf of Debian 12 knows no IPv6)
 *     traffic udp-crr-server PORT           answer single datagrams
 *     traffic udp-crr IP PORT WORKERS       send one from a new socket, read the answer
 *     traffic sink PORT COUNT               receive UDP on COUNT ports from PORT on
 *     traffic flood IP PORT SIZE COUNT SOURCES   send SIZE bytes from SOURCES sockets to COUNT ports in turn
 *
 * crr, rr and udp-crr write a line every 50 ms: seconds since its start, transactions so far. UDP is counted by the receiver's
 * kernel.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SERVER_WORKERS 8
#define BATCH 64
#define PAYLOAD 2048

#ifdef IPV6
#define FAMILY AF_INET6
#define ANY "::"
typedef struct sockaddr_in6 endpoint;
#else
#define FAMILY AF_INET
#define ANY "0.0.0.0"
typedef struct sockaddr_in endpoint;
#endif

static void set_port(endpoint *to, int port)
{
#ifdef IPV6
	to->sin6_port = htons(port);
#else
	to->sin_port = htons(port);
#endif
}

static endpoint address(const char *ip, int port)
{
	endpoint to = {FAMILY};
#ifdef IPV6
	int right = inet_pton(FAMILY, ip, &to.sin6_addr);
#else
	int right = inet_pton(FAMILY, ip, &to.sin_addr);
#endif

	if (right != 1)
		errx(1, "%s: not an address", ip);
	set_port(&to, port);
	return to;
}

/* A worker ends with the process that started it. */
static int worker(void)
{
	int pid = fork();

	if (pid < 0)
		err(1, "fork");
	if (!pid)
		prctl(PR_SET_PDEATHSIG, SIGKILL);
	return pid;
}

/* The server closes first, as HTTP servers do, so that the client's ports are free again at once. */
static void crr_server(int port)
{
	endpoint own = address(ANY, port);
	int on = 1, listener = socket(FAMILY, SOCK_STREAM, 0);
	char byte;

	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(listener, (void *)&own, sizeof(own)) || listen(listener, 1024))
		err(1, "port %d", port);
	for (int i = 1; i < SERVER_WORKERS && worker(); i++)
		;
	for (;;) {
		int peer = accept(listener, NULL, NULL);

		if (peer < 0)
			continue;
		if (read(peer, &byte, 1) == 1 && write(peer, &byte, 1) != 1)
			warn("write");
		close(peer);
	}
}

static void crr_client(const endpoint *to, volatile unsigned long *done)
{
	struct timeval patience = {.tv_sec = 5};
	char byte = 'x';

	for (;;) {
		int peer = socket(FAMILY, SOCK_STREAM, 0);

		setsockopt(peer, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
		if (!connect(peer, (const void *)to, sizeof(*to)) && write(peer, &byte, 1) == 1 &&
		    read(peer, &byte, 1) == 1 && read(peer, &byte, 1) == 0)
			++*done;
		close(peer);
	}
}

#define MESSAGE 64

/* Pass messages back and forth for as long as the other side does. */
static void talk(int peer, volatile unsigned long *done)
{
	char message[MESSAGE] = {0};
	int on = 1;

	setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	if (done && write(peer, message, MESSAGE) != MESSAGE)
		return;
	while (recv(peer, message, MESSAGE, MSG_WAITALL) == MESSAGE && write(peer, message, MESSAGE) == MESSAGE)
		if (done)
			++*done;
}

static void rr_server(int port)
{
	endpoint own = address(ANY, port);
	int on = 1, listener = socket(FAMILY, SOCK_STREAM, 0);

	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(listener, (void *)&own, sizeof(own)) || listen(listener, 16))
		err(1, "port %d", port);
	for (;;) {
		int peer = accept(listener, NULL, NULL);

		talk(peer, NULL);
		close(peer);
	}
}

static void rr_client(const endpoint *to, volatile unsigned long *done)
{
	int peer = socket(FAMILY, SOCK_STREAM, 0);

	if (connect(peer, (const void *)to, sizeof(*to)))
		err(1, "connect");
	talk(peer, done);
	errx(1, "the server has gone");
}

static void udp_crr_server(int port)
{
	endpoint peer, own = address(ANY, port);
	char byte;

	for (int i = 1; i < SERVER_WORKERS && worker(); i++)
		;
	int on = 1, udp = socket(FAMILY, SOCK_DGRAM, 0);

	setsockopt(udp, SOL_SOCKET, SO_REUSEPORT, &on, sizeof(on));
	if (bind(udp, (void *)&own, sizeof(own)))
		err(1, "port %d", port);
	for (;;) {
		socklen_t len = sizeof(peer);

		if (recvfrom(udp, &byte, 1, 0, (void *)&peer, &len) == 1)
			sendto(udp, &byte, 1, 0, (void *)&peer, len);
	}
}

/* As a resolver asks: a new socket, hence a new source port, for each question. */
static void udp_crr_client(const endpoint *to, volatile unsigned long *done)
{
	struct timeval patience = {.tv_sec = 1};
	char byte = 'x';

	for (;;) {
		int udp = socket(FAMILY, SOCK_DGRAM, 0);

		setsockopt(udp, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
		if (!connect(udp, (const void *)to, sizeof(*to)) && send(udp, &byte, 1, 0) == 1 &&
		    recv(udp, &byte, 1, 0) == 1)
			++*done;
		close(udp);
	}
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static void crr(void (*client)(const endpoint *, volatile unsigned long *), const endpoint *to,
		int workers)
{
	/* one cache line for each worker's counter */
	unsigned long *done = mmap(NULL, workers * 64, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (done == MAP_FAILED)
		err(1, "mmap");
	for (int i = 0; i < workers; i++)
		if (!worker())
			client(to, &done[i * 8]);
	for (double start = now();;) {
		unsigned long sum = 0;

		usleep(50000);
		for (int i = 0; i < workers; i++)
			sum += done[i * 8];
		printf("%.6f %lu\n", now() - start, sum);
		fflush(stdout);
	}
}

static int udp_socket(void)
{
	int bytes = 8 << 20, udp = socket(FAMILY, SOCK_DGRAM, 0);

	if (udp < 0)
		err(1, "socket");
	setsockopt(udp, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof(bytes));
	return udp;
}

static void batch(struct mmsghdr *messages, struct iovec *vectors, char *buffers, size_t apart,
		  size_t size)
{
	memset(messages, 0, BATCH * sizeof(*messages));
	for (int i = 0; i < BATCH; i++) {
		vectors[i] = (struct iovec){buffers + i * apart, size};
		messages[i].msg_hdr.msg_iov = &vectors[i];
		messages[i].msg_hdr.msg_iovlen = 1;
	}
}

static void sink(int port, int count)
{
	static char buffers[BATCH][PAYLOAD];
	struct epoll_event event = {.events = EPOLLIN}, ready[BATCH];
	struct mmsghdr messages[BATCH];
	struct iovec vectors[BATCH];
	int poll = epoll_create1(0);

	batch(messages, vectors, *buffers, PAYLOAD, PAYLOAD);
	for (int i = 0; i < count; i++) {
		endpoint own = address(ANY, port + i);

		event.data.fd = udp_socket();
		if (bind(event.data.fd, (void *)&own, sizeof(own)))
			err(1, "port %d", port + i);
		epoll_ctl(poll, EPOLL_CTL_ADD, event.data.fd, &event);
	}
	for (;;) {
		int sockets = epoll_wait(poll, ready, BATCH, -1);

		for (int i = 0; i < sockets; i++)
			while (recvmmsg(ready[i].data.fd, messages, BATCH, MSG_DONTWAIT, NULL) == BATCH)
				;
	}
}

/* Every batch leaves from one socket for BATCH different ports; sockets and ports take turns. */
static void flood(endpoint to, int first, int size, int count, int sources)
{
	static char payload[PAYLOAD];
	endpoint targets[BATCH];
	struct mmsghdr messages[BATCH];
	struct iovec vectors[BATCH];
	int sockets[sources], port = 0;

	batch(messages, vectors, payload, 0, size);
	for (int i = 0; i < BATCH; i++) {
		targets[i] = to;
		messages[i].msg_hdr.msg_name = &targets[i];
		messages[i].msg_hdr.msg_namelen = sizeof(to);
	}
	for (int i = 0; i < sources; i++)
		sockets[i] = udp_socket();
	for (int source = 0;; source = (source + 1) % sources) {
		for (int i = 0; i < BATCH; i++) {
			set_port(&targets[i], first + port);
			port = (port + 1) % count;
		}
		sendmmsg(sockets[source], messages, BATCH, 0);
	}
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";

	if (!strcmp(what, "crr-server") && argc == 3)
		crr_server(atoi(argv[2]));
	if (!strcmp(what, "rr-server") && argc == 3)
		rr_server(atoi(argv[2]));
	if (!strcmp(what, "udp-crr-server") && argc == 3)
		udp_crr_server(atoi(argv[2]));
	if (!strcmp(what, "sink") && argc == 4)
		sink(atoi(argv[2]), atoi(argv[3]));
	if (argc < 5)
		errx(2, "the comment at the top of traffic.c says how");
	endpoint to = address(argv[2], atoi(argv[3]));

	if (!strcmp(what, "crr"))
		crr(crr_client, &to, atoi(argv[4]));
	if (!strcmp(what, "rr"))
		crr(rr_client, &to, atoi(argv[4]));
	if (!strcmp(what, "udp-crr"))
		crr(udp_crr_client, &to, atoi(argv[4]));
	if (!strcmp(what, "flood") && argc == 7 && atoi(argv[4]) <= PAYLOAD)
		flood(to, atoi(argv[3]), atoi(argv[4]), atoi(argv[5]), atoi(argv[6]));
	errx(2, "%s: the comment at the top of traffic.c says how", what);
}
