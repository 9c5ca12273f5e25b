// A model API for benchmarks: one thread, epoll, loopback only.
//
//   upstream PORT          (PORT 0: any free one) prints the port it listens on
//
// Any POST is answered like a chat completion: JSON, or server-sent events when the body says "stream": true.
// GET /set?delay_us=D&gap_us=G&chunks=N changes, for the answers that start from then on, the wait before the first
// byte, the wait between two deltas, and the number of deltas. GET /stats tells what was asked for so far.
// Every delta holds "tick:<CLOCK_MONOTONIC in ns, 19 digits>", so that a reader on this machine knows how long it
// was under way. With G = 0 open streams take turns, one delta each, as the sequences in an engine's batch do.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define MAX_CONNECTIONS 4096
#define MAX_REQUEST (1 << 20)
#define OUT_BYTES (64 << 10)
#define NEVER INT64_MAX

enum phase { READING, WAITING, STREAMING };

typedef struct {
  int fd;
  enum phase phase;
  int wants_stream, wants_usage, deltas_sent, deltas_wanted;
  int64_t due_ns, gap_ns;
  char *in, out[OUT_BYTES];
  size_t in_len, out_len;
} connection;

static connection *open_connections[MAX_CONNECTIONS];
static int connection_count, epoll_fd;
static int64_t delay_ns, gap_ns;
static int chunks = 200;
static unsigned long long requests_seen, connections_seen, body_bytes_seen;

#define ID "\"id\":\"chatcmpl-bench00000000000000000000\",\"created\":1700000000,\"model\":\"bench-model\""
#define ANSWER                                                                                              \
  "{" ID ",\"object\":\"chat.completion\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\","   \
  "\"content\":\"Paris is the capital of France. It lies on the Seine, in the north of the country, and " \
  "has been its largest city for centuries.\"},\"logprobs\":null,\"finish_reason\":\"stop\"}],"             \
  "\"usage\":{\"prompt_tokens\":50,\"completion_tokens\":30,\"total_tokens\":80}}"
#define EVENT "data: {" ID ",\"object\":\"chat.completion.chunk\",\"choices\":"

static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void watch(connection *c, uint32_t events, int operation) {
  struct epoll_event e = {.events = events, .data.ptr = c};
  epoll_ctl(epoll_fd, operation, c->fd, &e);
}

static void drop(connection *c) {
  for (int i = 0; i < connection_count; i++)
    if (open_connections[i] == c) open_connections[i] = open_connections[--connection_count];
  close(c->fd);
  free(c->in);
  free(c);
}

static int flush(connection *c) { // 0: fine (perhaps not all sent), -1: the reader is gone and so is c
  size_t sent = 0;
  while (sent < c->out_len) {
    ssize_t n = write(c->fd, c->out + sent, c->out_len - sent);
    if (n < 0 && errno == EAGAIN) break;
    if (n < 0) return drop(c), -1;
    sent += n;
  }
  memmove(c->out, c->out + sent, c->out_len - sent);
  c->out_len -= sent;
  watch(c, c->out_len ? EPOLLIN | EPOLLOUT : EPOLLIN, EPOLL_CTL_MOD);
  return 0;
}

static void put(connection *c, const char *text, size_t n) {
  if (c->out_len + n <= OUT_BYTES) memcpy(c->out + c->out_len, text, n), c->out_len += n;
}

static void put_body(connection *c, const char *body) {
  char head[256];
  put(c, head, sprintf(head, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n", strlen(body)));
  put(c, body, strlen(body));
}

static void put_event(connection *c, const char *event) { // as one HTTP chunk
  char size[24];
  put(c, size, sprintf(size, "%zx\r\n", strlen(event)));
  put(c, event, strlen(event));
  put(c, "\r\n", 2);
}

static void next_delta(connection *c) { // role and first delta leave together, the rest one by one
  char event[512];
  if (c->deltas_sent == 0) {
    static const char head[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
                               "Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n";
    put(c, head, sizeof head - 1);
    put_event(c, EVENT "[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]}\n\n");
  }
  if (c->deltas_sent < c->deltas_wanted) {
    sprintf(event, EVENT "[{\"index\":0,\"delta\":{\"content\":\"tick:%019lld\"},\"finish_reason\":null}]}\n\n", (long long)now_ns());
    put_event(c, event);
    c->deltas_sent++;
    c->due_ns = now_ns() + c->gap_ns;
    return;
  }
  put_event(c, EVENT "[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n");
  if (c->wants_usage) {
    sprintf(event, EVENT "[],\"usage\":{\"prompt_tokens\":50,\"completion_tokens\":%d,\"total_tokens\":%d}}\n\n",
            c->deltas_wanted, c->deltas_wanted + 50);
    put_event(c, event);
  }
  put_event(c, "data: [DONE]\n\n");
  put(c, "0\r\n\r\n", 5);
  c->phase = READING;
  c->due_ns = NEVER;
}

static long query(const char *line, const char *key, long fallback) {
  const char *at = strstr(line, key);
  return at ? atol(at + strlen(key)) : fallback;
}

static int says_true(const char *body, size_t n, const char *key) {
  const char *at = memmem(body, n, key, strlen(key)), *end = body + n;
  if (!at) return 0;
  for (at += strlen(key); at < end && (*at == ':' || *at == ' ');) at++;
  return end - at >= 4 && !memcmp(at, "true", 4);
}

static void control(connection *c, const char *line) {
  char body[256];
  if (!strncmp(line, "GET /set?", 9)) {
    delay_ns = query(line, "delay_us=", delay_ns / 1000) * 1000;
    gap_ns = query(line, "gap_us=", gap_ns / 1000) * 1000;
    chunks = query(line, "chunks=", chunks);
  }
  sprintf(body, "{\"requests\":%llu,\"connections\":%llu,\"body_bytes\":%llu,\"delay_us\":%lld,\"gap_us\":%lld,\"chunks\":%d}",
          requests_seen, connections_seen, body_bytes_seen, (long long)delay_ns / 1000, (long long)gap_ns / 1000, chunks);
  put_body(c, body);
}

// Take one whole request from the input. 1: taken, 0: more bytes are needed, -1: not understood.
static int take_request(connection *c) {
  char *end = memmem(c->in, c->in_len, "\r\n\r\n", 4);
  if (!end) return c->in_len < MAX_REQUEST ? 0 : -1;
  *end = 0;
  char *length = strcasestr(c->in, "\r\ncontent-length:");
  size_t head = end + 4 - c->in, body = length ? strtoul(length + 17, NULL, 10) : 0;
  int is_get = !strncmp(c->in, "GET ", 4);
  *end = '\r';
  if ((!length && !is_get) || head + body > MAX_REQUEST) return -1;
  if (c->in_len < head + body) return 0;
  if (is_get) {
    control(c, c->in);
  } else {
    requests_seen++;
    body_bytes_seen += body;
    c->wants_stream = says_true(c->in + head, body, "\"stream\"");
    c->wants_usage = says_true(c->in + head, body, "\"include_usage\"");
    c->deltas_sent = 0;
    c->deltas_wanted = chunks;
    c->gap_ns = gap_ns;
    c->phase = WAITING;
    c->due_ns = now_ns() + delay_ns;
  }
  c->in_len -= head + body;
  memmove(c->in, c->in + head + body, c->in_len);
  c->in[c->in_len] = 0;
  return 1;
}

static void act(connection *c) { // something is due
  if (c->phase == WAITING && !c->wants_stream) {
    put_body(c, ANSWER);
    c->phase = READING;
    c->due_ns = NEVER;
  } else {
    c->phase = STREAMING;
    next_delta(c);
  }
  flush(c);
}

static void readable(connection *c) {
  for (;;) {
    ssize_t n = read(c->fd, c->in + c->in_len, MAX_REQUEST - c->in_len);
    if (n < 0 && errno == EAGAIN) break;
    if (n <= 0) return drop(c);
    c->in_len += n;
    c->in[c->in_len] = 0;
    if (c->in_len == MAX_REQUEST) break;
  }
  while (c->phase == READING) {
    int taken = take_request(c);
    if (taken < 0) return drop(c);
    if (!taken) break;
    if (c->phase == WAITING && c->due_ns <= now_ns()) return act(c);
    if (c->phase == READING && flush(c) < 0) return;
  }
}

static void welcome(int listener) {
  int fd, one = 1;
  while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
    if (connection_count == MAX_CONNECTIONS) { close(fd); continue; }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    connection *c = calloc(1, sizeof *c);
    c->fd = fd;
    c->in = malloc(MAX_REQUEST + 1);
    c->due_ns = NEVER;
    open_connections[connection_count++] = c;
    connections_seen++;
    watch(c, EPOLLIN, EPOLL_CTL_ADD);
  }
}

static int64_t serve_due(void) { // returns when the next one is due
  int64_t now = now_ns(), next = NEVER;
  for (int i = connection_count - 1; i >= 0; i--) { // backwards: `act` may drop the connection it works on
    connection *c = open_connections[i];
    if (c->due_ns <= now && c->out_len < OUT_BYTES / 2) act(c);
  }
  for (int i = 0; i < connection_count; i++) {
    connection *c = open_connections[i];
    if (c->due_ns < next && c->out_len < OUT_BYTES / 2) next = c->due_ns;
  }
  return next;
}

int main(int argc, char **argv) {
  signal(SIGPIPE, SIG_IGN);
  int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(argc > 1 ? atoi(argv[1]) : 0), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t length = sizeof address;
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(listener, (void *)&address, sizeof address) || listen(listener, 1024)) return perror("upstream"), 1;
  getsockname(listener, (void *)&address, &length);
  printf("%d\n", ntohs(address.sin_port));
  fflush(stdout);
  epoll_fd = epoll_create1(0);
  int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
  struct epoll_event events[256], e = {.events = EPOLLIN, .data.ptr = &listener};
  epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &e);
  e.data.ptr = &timer;
  epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer, &e);
  for (;;) {
    int64_t next = serve_due();
    int overdue = next <= now_ns();
    if (!overdue) {
      struct itimerspec at = {0};
      if (next != NEVER) at.it_value = (struct timespec){next / 1000000000LL, next % 1000000000LL};
      timerfd_settime(timer, TFD_TIMER_ABSTIME, &at, NULL);
    }
    int n = epoll_wait(epoll_fd, events, 256, overdue ? 0 : -1);
    for (int i = 0; i < n; i++) {
      connection *c = events[i].data.ptr;
      if (events[i].data.ptr == &listener) { welcome(listener); continue; }
      if (events[i].data.ptr == &timer) { uint64_t count; while (read(timer, &count, sizeof count) > 0); continue; }
      if ((events[i].events & EPOLLOUT) && flush(c) < 0) continue;
      if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) readable(c);
    }
  }
}
