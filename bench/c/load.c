// A closed-loop load generator for chat completions: one thread, epoll, loopback only.
//
//   load PORT BODY_FILE [-c CONNECTIONS] [-d SECONDS | -n REQUESTS] [-w WARM_UP_REQUESTS] [-k KEY] [-s]
//        [-p PATH] [-H 'NAME: VALUE']...
//
// Every connection sends BODY_FILE to PATH (/v1/chat/completions), reads the whole answer and sends it again. Where the body
// holds "serial:0000000000", the digits count the requests, so that no two prompts are the same. -s reads the
// answers as streams: the time to the first delta and, from the tick in each delta (see upstream.c), how long every
// delta was under way. Prints one JSON object; times are in microseconds, warm-up requests are not counted.
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
#include <time.h>
#include <unistd.h>

#define IN_BYTES (256 << 10)
#define MAX_BODY (1 << 20)
#define HEAD_BYTES 8192
#define STUCK_AFTER_NS 20000000000LL

typedef struct {
  float *values;
  size_t count, room;
} series;

typedef struct {
  int fd, busy, counted, status, chunked, saw_delta, closes;
  int64_t sent_ns;
  size_t in_len, head_len, length, parsed, ticks_parsed;
  char in[IN_BYTES];
} connection;

static series latency_us, first_delta_us, transit_us;
static char *request, *serial, more_headers[HEAD_BYTES / 2];
static const char *path = "/v1/chat/completions";
static size_t request_len;
static int port, streaming, epoll_fd, connections = 1;
static double seconds;
static int64_t wanted = 1000, warm_up, begun, measured_from_ns, last_ns;
static unsigned long long done, failed, refused, reads_with_deltas;
static char first_refusal[240];

static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void add(series *s, double value) {
  if (s->count == s->room) s->values = realloc(s->values, (s->room = s->room ? s->room * 2 : 4096) * sizeof(float));
  s->values[s->count++] = value;
}

static int ascending(const void *a, const void *b) {
  float x = *(const float *)a, y = *(const float *)b;
  return (x > y) - (x < y);
}

static void print_series(const char *name, series *s) {
  if (!s->count) { printf("\"%s\":null,", name); return; }
  qsort(s->values, s->count, sizeof(float), ascending);
#define QUANTILE(q) s->values[(size_t)((s->count - 1) * (q) + 0.5)]
  printf("\"%s\":{\"n\":%zu,\"p50\":%.1f,\"p95\":%.1f,\"p99\":%.1f,\"max\":%.1f},", name, s->count, QUANTILE(.5), QUANTILE(.95), QUANTILE(.99), QUANTILE(1));
}

static void dial(connection *c) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
  int one = 1;
  c->fd = socket(AF_INET, SOCK_STREAM, 0);
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if (connect(c->fd, (void *)&address, sizeof address)) {
    perror("load: connect");
    exit(3);
  }
  epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &e);
}

static void redial(connection *c) {
  close(c->fd);
  c->busy = 0;
  dial(c);
}

static int more_wanted(void) {
  if (seconds > 0) return begun <= warm_up || now_ns() - measured_from_ns < (int64_t)(seconds * 1e9);
  return begun < wanted + warm_up;
}

static void send_next(connection *c) {
  if (!more_wanted()) return;
  c->counted = begun++ >= warm_up;
  c->busy = 1;
  if (serial) {
    char digits[21];
    snprintf(digits, sizeof digits, "%010lld", (long long)begun);
    memcpy(serial + 7, digits, 10);
  }
  c->in_len = c->head_len = c->length = c->parsed = c->ticks_parsed = 0;
  c->status = c->chunked = c->saw_delta = c->closes = 0;
  c->sent_ns = now_ns();
  if (c->counted && !measured_from_ns) measured_from_ns = c->sent_ns;
  for (size_t sent = 0; sent < request_len;) {
    ssize_t n = send(c->fd, request + sent, request_len - sent, MSG_NOSIGNAL);
    if (n < 0) { failed++; redial(c); return; }
    sent += n;
  }
}

static void finish(connection *c, int64_t t) {
  c->busy = 0;
  last_ns = t;
  if (c->status != 200) {
    if (!refused++) memcpy(first_refusal, c->in, c->in_len < sizeof first_refusal - 1 ? c->in_len : sizeof first_refusal - 1);
  } else if (c->counted) {
    done++;
    add(&latency_us, (t - c->sent_ns) / 1e3);
  }
  if (c->closes) redial(c);
  send_next(c);
}

static int read_head(connection *c) { // 1 once the whole head is there
  char *end = memmem(c->in, c->in_len, "\r\n\r\n", 4), *field;
  if (!end) return 0;
  *end = 0;
  c->status = atoi(c->in + 9);
  if ((field = strcasestr(c->in, "\r\ncontent-length:"))) c->length = strtoul(field + 17, NULL, 10);
  c->chunked = strcasestr(c->in, "\r\ntransfer-encoding: chunked") != NULL;
  c->closes = strcasestr(c->in, "\r\nconnection: close") != NULL;
  *end = '\r';
  c->head_len = c->parsed = c->ticks_parsed = end + 4 - c->in;
  return 1;
}

static void read_ticks(connection *c, int64_t t) {
  int seen = 0;
  for (;;) {
    char *tick = memmem(c->in + c->ticks_parsed, c->in_len - c->ticks_parsed, "tick:", 5);
    if (!tick || tick + 24 > c->in + c->in_len) {
      size_t keep = tick ? (size_t)(c->in + c->in_len - tick) : 4;
      if (c->in_len - c->ticks_parsed > keep) c->ticks_parsed = c->in_len - keep;
      break;
    }
    if (!c->saw_delta++ && c->counted) add(&first_delta_us, (t - c->sent_ns) / 1e3);
    if (c->counted) add(&transit_us, (t - strtoll(tick + 5, NULL, 10)) / 1e3), seen = 1;
    c->ticks_parsed = tick + 24 - c->in;
  }
  reads_with_deltas += seen;
}

static int whole_answer(connection *c) {
  if (!c->chunked) return c->in_len - c->head_len >= c->length;
  for (;;) {
    char *line_end = memchr(c->in + c->parsed, '\n', c->in_len - c->parsed);
    if (!line_end) return 0;
    size_t size = strtoul(c->in + c->parsed, NULL, 16), data = line_end + 1 - c->in;
    if (c->in_len < data + size + 2) return 0;
    c->parsed = data + size + 2;
    if (!size) return 1;
  }
}

static void drop_parsed(connection *c) { // a long stream does not fit: forget what has been looked at
  size_t from = c->chunked ? c->parsed : 0;
  if (c->ticks_parsed < from) from = c->ticks_parsed;
  if (from < c->head_len || c->in_len < IN_BYTES / 2) return;
  memmove(c->in, c->in + from, c->in_len - from);
  c->in_len -= from, c->parsed -= from, c->ticks_parsed -= from, c->head_len = 1;
}

static void readable(connection *c) {
  ssize_t n = recv(c->fd, c->in + c->in_len, IN_BYTES - 1 - c->in_len, MSG_DONTWAIT);
  int64_t t = now_ns();
  if (n < 0 && errno == EAGAIN) return;
  if (n <= 0) {
    failed += c->busy;
    redial(c);
    send_next(c);
    return;
  }
  c->in_len += n;
  c->in[c->in_len] = 0;
  if (!c->busy || (!c->head_len && !read_head(c))) return;
  if (streaming) read_ticks(c, t);
  if (whole_answer(c)) finish(c, t);
  else drop_parsed(c);
}

static void make_request(const char *body_file, const char *key) {
  FILE *file = fopen(body_file, "rb");
  if (!file) { perror(body_file); exit(2); }
  char *body = malloc(MAX_BODY);
  size_t n = fread(body, 1, MAX_BODY, file);
  request = malloc(n + HEAD_BYTES);
  request_len = snprintf(request, HEAD_BYTES, "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAuthorization: Bearer %s\r\n%s"
                         "Content-Type: application/json\r\nAccept: */*\r\nContent-Length: %zu\r\n\r\n", path, port, key, more_headers, n);
  if (request_len >= HEAD_BYTES) { fprintf(stderr, "load: the head of the request is too long\n"); exit(2); }
  memcpy(request + request_len, body, n);
  request_len += n;
  serial = memmem(request, request_len, "serial:0000000000", 17);
  free(body);
  fclose(file);
}

static void add_header(const char *header) {
  size_t used = strlen(more_headers), room = sizeof more_headers - used;
  if ((size_t)snprintf(more_headers + used, room, "%s\r\n", header) >= room) { fprintf(stderr, "load: too many headers\n"); exit(2); }
}

static void print_report(void) {
  double took = (last_ns - measured_from_ns) / 1e9;
  printf("{");
  print_series("latency_us", &latency_us);
  print_series("first_delta_us", &first_delta_us);
  print_series("transit_us", &transit_us);
  printf("\"begun\":%lld,\"done\":%llu,\"failed\":%llu,\"refused\":%llu,\"reads_with_deltas\":%llu,\"seconds\":%.4f,\"requests_per_s\":%.1f,\"first_refusal\":\"",
         (long long)begun, done, failed, refused, reads_with_deltas, took, took > 0 ? done / took : 0);
  for (char *p = first_refusal; *p; p++) {
    if (*p == '"' || *p == '\\') putchar('\\');
    putchar((unsigned char)*p < 32 ? ' ' : *p);
  }
  printf("\"}\n");
}

int main(int argc, char **argv) {
  const char *key = "none";
  int option;
  signal(SIGPIPE, SIG_IGN);
  while ((option = getopt(argc, argv, "c:d:n:w:k:sp:H:")) != -1) {
    if (option == 'c') connections = atoi(optarg);
    else if (option == 'd') seconds = atof(optarg);
    else if (option == 'n') wanted = atol(optarg);
    else if (option == 'w') warm_up = atol(optarg);
    else if (option == 'k') key = optarg;
    else if (option == 's') streaming = 1;
    else if (option == 'p') path = optarg;
    else if (option == 'H') add_header(optarg);
    else return 2;
  }
  if (argc - optind != 2) return fprintf(stderr, "usage: load PORT BODY_FILE [options]\n"), 2;
  port = atoi(argv[optind]);
  make_request(argv[optind + 1], key);
  epoll_fd = epoll_create1(0);
  connection *all = calloc(connections, sizeof(connection));
  for (int i = 0; i < connections; i++) dial(&all[i]);
  for (int i = 0; i < connections; i++) send_next(&all[i]);
  struct epoll_event events[256];
  int64_t quiet_since_ns = now_ns();
  for (;;) {
    int busy = 0;
    for (int i = 0; i < connections; i++) busy += all[i].busy;
    if (!busy) break;
    int n = epoll_wait(epoll_fd, events, 256, 1000);
    if (n > 0) quiet_since_ns = now_ns();
    else if (now_ns() - quiet_since_ns > STUCK_AFTER_NS) { failed += busy; break; }
    for (int i = 0; i < n; i++) readable(events[i].data.ptr);
  }
  print_report();
  return 0;
}
