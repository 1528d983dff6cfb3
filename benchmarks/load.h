/* What the parts of the load generator share: load.c (options, figures), loop.c (the event loop), speak.c (the bytes). */
#ifndef LOAD_H
#define LOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "histogram.h"

enum { TENSORS_MAX = 16, DIMENSIONS_MAX = 8, HEAD_BYTES_MAX = 4096, TAG_BYTES = 8, ALIGNMENT = 64 };
enum { CONNECTIONS_MAX = 1 << 15, SLOTS_MAX = 1 << 16 /* of a connection */ };
enum { CODES = 1024 }; /* of the protocol's errors, and of HTTP's */

enum target { TENSORD, ECHO, HTTP };

struct tensor {
    uint64_t dtype, ndim, shape[DIMENSIONS_MAX], nbytes; /* rows first */
};

struct job { /* what is asked, and of whom: the same for every request of a run */
    enum target target;
    bool arena;
    const char *socket, *model; /* a path, or HOST:PORT of 127.0.0.1 */
    struct tensor inputs[TENSORS_MAX], outputs[TENSORS_MAX];
    unsigned input_count, output_count;
    uint8_t *input, *expected; /* of all tensors, one behind the other */
    uint64_t input_bytes, output_bytes;
    bool tagged; /* the answer is the input: the first bytes of both are the request's id, so no answer can pass for
                    another one */
    unsigned connections, depth;
};

struct slot { /* a request in flight, or the place for one */
    uint64_t id;              /* 0: free */
    int64_t since_ns;         /* latency counts from here */
    bool sent, measured;
    uint8_t *input, *output;  /* in the arena */
    size_t head_bytes;
    uint8_t *head;            /* everything before the payload */
    uint8_t *expected_headers; /* of the outputs in its RESULT */
    size_t expected_headers_bytes;
};

struct answer { /* the one that is being received */
    struct slot *slot; /* NULL: nobody's */
    int code;          /* 0: a result */
    bool good;         /* its head is as promised */
    uint64_t body_bytes, body_at;
    uint8_t tag[TAG_BYTES];
    uint8_t *body; /* kept only where it will be compared */
};

struct connection {
    int socket;
    uint64_t answers;
    struct slot *slots, **queue; /* the queue holds what is not sent yet, oldest first */
    unsigned queue_first, queued;
    size_t queue_offset; /* bytes of the oldest that are sent */
    bool waits_to_write;
    struct slot **idle; /* a stack */
    unsigned idle_count;
    uint8_t *arena;
    size_t arena_bytes;
    uint8_t head[HEAD_BYTES_MAX];
    size_t head_bytes;
    bool in_body;
    struct answer answer;
};

/* speak.c */

/* Connects, says what must be said first, and makes every slot's request. Ends the process when it cannot. */
void open_connection(const struct job *job, struct connection *connection);

/* Makes the slot's request the one with this id. */
void stamp(const struct job *job, struct slot *slot, uint64_t id, int64_t deadline_ns);

/* Takes bytes of an answer's head and returns how many; in_body is set once it is whole and `answer` filled in. Ends
 * the process when the stream is not one of answers. */
size_t take_head(const struct job *job, struct connection *connection, const uint8_t *bytes, size_t size);

/* Whether a result that is whole has the right bytes: its tag always, and all of it when `fully`. */
bool is_right(const struct job *job, const struct connection *connection, bool fully);

void die(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

/* loop.c */

struct plan {
    double seconds, warmup_s; /* after the warm-up; or */
    uint64_t requests;        /* so many requests, and all of them count */
    double rate;              /* open loop: arrivals per second; 0: closed loop */
    uint64_t seed;
    int64_t deadline_ns; /* from a request's scheduled arrival; 0: none */
    int64_t patience_ns; /* for an answer: what has none by then is lost */
    unsigned check_every;
    bool announces; /* the window's begin and end, so that somebody can look at the servers then */
};

struct counts { /* of the measured requests, or of all */
    uint64_t sent, answered, late, wrong, unsent, lost;
    uint64_t errors[CODES];
};

struct figures {
    struct counts measured, total;
    uint64_t offered; /* open loop: arrivals in the window */
    uint64_t checked; /* answers that were compared whole */
    double seconds, cpu_seconds;
    struct histogram *latencies, *send_delays;
};

void run(const struct job *job, const struct plan *plan, struct connection *connections, struct figures *figures);

#endif
