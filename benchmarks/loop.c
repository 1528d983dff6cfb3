/* The event loop: one thread, epoll, and the clock read once per wake-up, when the bytes of answers are there.
 *
 * Closed loop: a request that is answered is followed by the next one in its place. Open loop: requests have arrival
 * times, drawn beforehand, and their latency counts from those, whenever they could be sent. */
#define _GNU_SOURCE
#include "load.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>

enum { EVENTS_MAX = 256, PARTS_MAX = 64, READ_BYTES = 256 * 1024, SPOILT = 0xa5 };

#define NS_PER_S INT64_C(1000000000)

static const int64_t NAP_NS = NS_PER_S / 1000;

struct loop {
    const struct job *job;
    const struct plan *plan;
    struct connection *connections;
    struct figures *figures;
    int epoll;
    uint64_t generation; /* of ids */
    uint64_t in_flight, begun, random;
    int64_t now_ns, start_ns, end_ns, last_answer_ns, next_arrival_ns;
    unsigned next_connection;
    bool begins; /* new requests */
};

static int64_t clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * NS_PER_S + now.tv_nsec;
}

static double cpu_seconds(const struct rusage *usage) {
    return (double)(usage->ru_utime.tv_sec + usage->ru_stime.tv_sec) +
           (double)(usage->ru_utime.tv_usec + usage->ru_stime.tv_usec) / 1e6;
}

static bool is_open(const struct loop *loop) {
    return loop->plan->rate > 0;
}

static bool in_window(const struct loop *loop, int64_t ns) {
    return ns >= loop->start_ns && ns < loop->end_ns;
}

/* ── sending ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

static void begin(struct loop *loop, struct connection *connection, struct slot *slot, int64_t since_ns) {
    const struct plan *plan = loop->plan;
    uint64_t place = (uint64_t)(connection - loop->connections), index = (uint64_t)(slot - connection->slots);
    uint64_t id = place << 48 | (++loop->generation << 16 & 0xffffffff0000) | index;
    stamp(loop->job, slot, id, plan->deadline_ns > 0 ? since_ns + plan->deadline_ns : 0);
    slot->since_ns = since_ns;
    slot->measured = !is_open(loop) || in_window(loop, since_ns); /* closed: the time of its answer decides */
    connection->queue[(connection->queue_first + connection->queued++) % loop->job->depth] = slot;
    loop->in_flight++;
    loop->begun++;
    loop->figures->total.sent++;
    if (is_open(loop) && slot->measured)
        observe(loop->figures->send_delays, loop->now_ns - since_ns);
}

static void follow(struct loop *loop, struct connection *connection, struct slot *slot) {
    bool more = loop->begins && !is_open(loop) && (loop->plan->requests == 0 || loop->begun < loop->plan->requests);
    if (more)
        begin(loop, connection, slot, loop->now_ns);
    else
        connection->idle[connection->idle_count++] = slot;
}

static void watch(struct loop *loop, struct connection *connection, bool waits_to_write) {
    struct epoll_event event = {.events = EPOLLIN | (waits_to_write ? EPOLLOUT : 0), .data.ptr = connection};
    if (waits_to_write != connection->waits_to_write)
        epoll_ctl(loop->epoll, EPOLL_CTL_MOD, connection->socket, &event);
    connection->waits_to_write = waits_to_write;
}

/* Adds what is left of a part after `skipped` bytes, and returns what is left to skip. */
static size_t add_part(struct iovec *parts, size_t *count, void *bytes, size_t size, size_t skipped) {
    if (skipped >= size)
        return skipped - size;
    parts[(*count)++] = (struct iovec){(uint8_t *)bytes + skipped, size - skipped};
    return 0;
}

/* The slot's bytes are out. If its answer came before, which only an error can do, it is free now. */
static void mark_sent(struct loop *loop, struct connection *connection) {
    struct slot *slot = connection->queue[connection->queue_first];
    connection->queue_first = (connection->queue_first + 1) % loop->job->depth;
    connection->queued--;
    slot->sent = true;
    if (slot->id == 0)
        follow(loop, connection, slot);
}

static void flush(struct loop *loop, struct connection *connection) {
    const struct job *job = loop->job;
    size_t tag_bytes = job->tagged ? TAG_BYTES : 0;
    uint8_t *payload = job->input + tag_bytes; /* behind the tag, which went with the head */
    size_t payload_bytes = job->arena ? 0 : job->input_bytes - tag_bytes;
    while (connection->queued > 0) {
        struct iovec parts[PARTS_MAX];
        size_t count = 0, skipped = connection->queue_offset;
        for (unsigned i = 0; i < connection->queued && count + 2 <= PARTS_MAX; i++) {
            struct slot *slot = connection->queue[(connection->queue_first + i) % job->depth];
            skipped = add_part(parts, &count, slot->head, slot->head_bytes, skipped);
            skipped = add_part(parts, &count, payload, payload_bytes, skipped);
        }
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = count};
        ssize_t sent = sendmsg(connection->socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno != EAGAIN && errno != EINTR)
            die("cannot send: %s", strerror(errno));
        connection->queue_offset += sent > 0 ? (size_t)sent : 0;
        while (connection->queued > 0 && connection->queue_offset >=
                                             connection->queue[connection->queue_first]->head_bytes + payload_bytes) {
            connection->queue_offset -= connection->queue[connection->queue_first]->head_bytes + payload_bytes;
            mark_sent(loop, connection);
        }
        if (sent < 0)
            break;
    }
    watch(loop, connection, connection->queued > 0);
}

/* ── receiving ───────────────────────────────────────────────────────────────────────────────────────────────────── */

static void count_answer(struct loop *loop, struct counts *counts, const struct answer *answer, bool right) {
    int64_t deadline_ns = loop->plan->deadline_ns;
    if (answer->code != 0)
        counts->errors[answer->code % CODES]++;
    else if (!right)
        counts->wrong++;
    else if (deadline_ns > 0 && loop->now_ns - answer->slot->since_ns > deadline_ns)
        counts->late++;
    else
        counts->answered++;
}

/* An answer is whole: judge it, count it, and follow it by the next request. */
static void finish(struct loop *loop, struct connection *connection) {
    struct answer *answer = &connection->answer;
    struct slot *slot = answer->slot;
    if (slot == NULL)
        die("an answer to nothing that was asked (code %d)", answer->code);
    bool due = answer->code == 0 && connection->answers++ % loop->plan->check_every == 0;
    bool fully = due && (answer->body != NULL || slot->output != NULL);
    bool right = answer->code == 0 && is_right(loop->job, connection, fully);
    bool measured = is_open(loop) ? slot->measured : in_window(loop, loop->now_ns);
    if (answer->code == 0 && !right && loop->figures->total.wrong == 0)
        fprintf(stderr, "load: a wrong answer to request %llx\n", (unsigned long long)slot->id);
    count_answer(loop, &loop->figures->total, answer, right);
    if (measured) {
        count_answer(loop, &loop->figures->measured, answer, right);
        if (right)
            observe(loop->figures->latencies, loop->now_ns - slot->since_ns);
    }
    if (fully && slot->output != NULL)
        memset(slot->output, SPOILT, loop->job->output_bytes); /* what the next answer does not write will be seen */
    loop->figures->checked += fully;
    free(answer->body);
    answer->body = NULL;
    connection->in_body = false;
    connection->head_bytes = 0;
    loop->in_flight--;
    loop->last_answer_ns = loop->now_ns;
    slot->id = 0;
    if (slot->sent)
        follow(loop, connection, slot);
}

/* Takes bytes of a body. They are looked at and thrown away, unless the whole answer will be compared. */
static size_t take_body(struct loop *loop, struct connection *connection, const uint8_t *bytes, size_t size) {
    struct answer *answer = &connection->answer;
    uint64_t left = answer->body_bytes - answer->body_at;
    size_t part = size < left ? size : (size_t)left;
    bool kept = answer->good && connection->answers % loop->plan->check_every == 0;
    if (kept && answer->body == NULL && answer->body_bytes > 0 && (answer->body = malloc(answer->body_bytes)) == NULL)
        die("no memory for an answer");
    if (answer->body != NULL)
        memcpy(answer->body + answer->body_at, bytes, part);
    for (size_t i = 0; i < part && answer->body_at + i < TAG_BYTES; i++)
        answer->tag[answer->body_at + i] = bytes[i];
    answer->body_at += part;
    return part;
}

static void receive(struct loop *loop, struct connection *connection) {
    static uint8_t bytes[READ_BYTES];
    ssize_t received = recv(connection->socket, bytes, sizeof bytes, MSG_DONTWAIT);
    if (received < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (received <= 0)
        die("the connection is lost with %llu requests in flight: %s", (unsigned long long)loop->in_flight,
            received == 0 ? "it ended" : strerror(errno));
    loop->now_ns = clock_ns();
    for (size_t at = 0; at < (size_t)received;) {
        if (!connection->in_body)
            at += take_head(loop->job, connection, bytes + at, (size_t)received - at);
        else
            at += take_body(loop, connection, bytes + at, (size_t)received - at);
        if (connection->in_body && connection->answer.body_at == connection->answer.body_bytes)
            finish(loop, connection);
    }
    flush(loop, connection);
}

/* ── arrivals of the open loop ───────────────────────────────────────────────────────────────────────────────────── */

static double uniform(struct loop *loop) { /* xorshift64*, in (0, 1] */
    loop->random ^= loop->random >> 12;
    loop->random ^= loop->random << 25;
    loop->random ^= loop->random >> 27;
    return (double)((loop->random * 0x2545f4914f6cdd1dULL >> 11) + 1) / 9007199254740992.0;
}

static bool has_arrivals(const struct loop *loop) {
    return is_open(loop) && loop->next_arrival_ns < loop->end_ns;
}

/* The next arrival: the gaps of a Poisson process are exponential. */
static void schedule(struct loop *loop) {
    loop->next_arrival_ns += (int64_t)(-log(uniform(loop)) / loop->plan->rate * (double)NS_PER_S);
}

static struct connection *with_room(struct loop *loop) {
    for (unsigned i = 0; i < loop->job->connections; i++) {
        struct connection *connection = &loop->connections[loop->next_connection++ % loop->job->connections];
        if (connection->idle_count > 0)
            return connection;
    }
    return NULL;
}

/* Begins every request whose time has come; those that are due at once go to one connection and out by one system call,
 * so that the generator keeps up. One that finds no room waits, and the ones behind it; one whose deadline passes while
 * it waits is given up, unsent. */
static void arrive(struct loop *loop) {
    const struct plan *plan = loop->plan;
    struct connection *connection = NULL;
    loop->now_ns = clock_ns();
    for (; loop->next_arrival_ns <= loop->now_ns && has_arrivals(loop); schedule(loop)) {
        bool counts = in_window(loop, loop->next_arrival_ns);
        bool late = plan->deadline_ns > 0 && loop->now_ns - loop->next_arrival_ns > plan->deadline_ns;
        if (!late && (connection == NULL || connection->idle_count == 0)) {
            if (connection != NULL)
                flush(loop, connection);
            if ((connection = with_room(loop)) == NULL)
                return;
        }
        loop->figures->offered += counts;
        loop->figures->measured.unsent += counts && late;
        if (!late)
            begin(loop, connection, connection->idle[--connection->idle_count], loop->next_arrival_ns);
    }
    if (connection != NULL)
        flush(loop, connection);
}

/* ── a run ───────────────────────────────────────────────────────────────────────────────────────────────────────── */

static void wait_and_serve(struct loop *loop, int64_t until_ns) {
    struct epoll_event events[EVENTS_MAX];
    int64_t left_ns = until_ns > loop->now_ns ? until_ns - loop->now_ns : 0;
    struct timespec timeout = {left_ns / NS_PER_S, left_ns % NS_PER_S};
    int count = epoll_pwait2(loop->epoll, events, EVENTS_MAX, &timeout, NULL);
    loop->now_ns = clock_ns();
    for (int i = 0; i < count; i++) {
        struct connection *connection = events[i].data.ptr;
        if (events[i].events & ~(uint32_t)EPOLLOUT)
            receive(loop, connection);
        if (events[i].events & EPOLLOUT)
            flush(loop, connection);
    }
}

static void begin_all(struct loop *loop) {
    const struct plan *plan = loop->plan;
    for (unsigned i = 0; i < loop->job->connections; i++) {
        struct connection *connection = &loop->connections[i];
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = connection};
        if (epoll_ctl(loop->epoll, EPOLL_CTL_ADD, connection->socket, &event) != 0)
            die("epoll: %s", strerror(errno));
        loop->now_ns = clock_ns();
        while (!is_open(loop) && connection->idle_count > 0 && (plan->requests == 0 || loop->begun < plan->requests))
            begin(loop, connection, connection->idle[--connection->idle_count], loop->now_ns);
        flush(loop, connection);
    }
}

/* One turn; it ends by `end_ns`. */
static void turn(struct loop *loop, int64_t end_ns) {
    int64_t wake_ns = loop->now_ns + loop->plan->patience_ns; /* to see a silence */
    if (has_arrivals(loop)) {
        arrive(loop);
        bool waits_for_room = loop->next_arrival_ns <= loop->now_ns; /* or for its deadline: look often */
        wake_ns = waits_for_room ? loop->now_ns + NAP_NS : loop->next_arrival_ns;
    }
    wait_and_serve(loop, wake_ns < end_ns ? wake_ns : end_ns);
}

/* Until this time, or until all requests of a counted run are answered, or nothing more can be expected. */
static void serve_until(struct loop *loop, int64_t end_ns) {
    bool is_counted = loop->plan->requests > 0, is_silent = false;
    while (loop->now_ns < end_ns && !(is_counted && loop->in_flight == 0) && !is_silent) {
        turn(loop, end_ns);
        is_silent = loop->in_flight > 0 && !is_open(loop) &&
                    loop->now_ns - loop->last_answer_ns > loop->plan->patience_ns;
    }
}

/* Waits for what is in flight, and for arrivals that had no room. What is left then is lost, or unsent. */
static void drain(struct loop *loop) {
    int64_t end_ns = loop->now_ns + loop->plan->patience_ns;
    loop->begins = false;
    while ((loop->in_flight > 0 || has_arrivals(loop)) && loop->now_ns < end_ns)
        turn(loop, end_ns);
    for (unsigned i = 0; i < loop->job->connections; i++)
        for (unsigned j = 0; j < loop->job->depth; j++) {
            struct slot *slot = &loop->connections[i].slots[j];
            loop->figures->total.lost += slot->id != 0;
            loop->figures->measured.lost += slot->id != 0 && slot->measured;
        }
    for (; has_arrivals(loop); schedule(loop)) {
        loop->figures->offered += in_window(loop, loop->next_arrival_ns);
        loop->figures->measured.unsent += in_window(loop, loop->next_arrival_ns);
    }
}

static void announce(const struct loop *loop, const char *what) {
    if (!loop->plan->announces)
        return;
    puts(what);
    fflush(stdout);
}

void run(const struct job *job, const struct plan *plan, struct connection *connections, struct figures *figures) {
    struct loop loop = {.job = job, .plan = plan, .connections = connections, .figures = figures, .begins = true,
                        .epoll = epoll_create1(EPOLL_CLOEXEC), .random = (plan->seed + 1) * 0x9e3779b97f4a7c15ULL};
    struct rusage before, after;
    prctl(PR_SET_TIMERSLACK, 1); /* nanosecond: arrivals are on time */
    loop.now_ns = loop.last_answer_ns = loop.next_arrival_ns = clock_ns();
    loop.start_ns = loop.now_ns + (int64_t)(plan->warmup_s * (double)NS_PER_S);
    loop.end_ns = plan->requests > 0 ? INT64_MAX : loop.start_ns + (int64_t)(plan->seconds * (double)NS_PER_S);
    if (is_open(&loop))
        schedule(&loop);
    begin_all(&loop);
    if (plan->requests == 0)
        serve_until(&loop, loop.start_ns);
    announce(&loop, "begin");
    getrusage(RUSAGE_SELF, &before);
    serve_until(&loop, loop.end_ns);
    getrusage(RUSAGE_SELF, &after);
    announce(&loop, "end");
    figures->seconds = (double)((plan->requests > 0 ? loop.last_answer_ns : loop.end_ns) - loop.start_ns) / 1e9;
    figures->cpu_seconds = cpu_seconds(&after) - cpu_seconds(&before);
    drain(&loop);
}
