/* A client of tensord in C11: both lanes, many requests in flight, models with one input and one output.
 *
 * A connection belongs to one thread of one process. Functions that can fail return false, NULL or 0 and say in *error
 * why; then there is nothing to free. Once the connection is lost every call fails with the reason, but answers that
 * had come by then can still be received. Tensors are little-endian, in C order, and may lie at any address: read them
 * with memcpy. */
#ifndef TENSORD_H
#define TENSORD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { TENSORD_DIMENSIONS_MAX = 8, TENSORD_LABEL_BYTES_MAX = 128 };
enum { TENSORD_FLOAT32 = 9 }; /* the other data types: docs/protocol.md, Tensors */

/* Codes that this client itself gives. Those of the daemon: docs/protocol.md, The error table. */
enum { TENSORD_BAD_REQUEST = 103, TENSORD_TOO_MANY_IN_FLIGHT = 201, TENSORD_NO_MEMORY = 205 };
enum { TENSORD_DAEMON_NOT_FOUND = 500, TENSORD_CONNECTION_LOST = 501 };

struct tensord_error {
    int code;        /* 0: none */
    char text[1024]; /* one sentence for people; its wording may change */
};

struct tensord_spec { /* the input or the output of a model */
    uint64_t dtype, ndim, row_bytes;
    uint64_t shape[TENSORD_DIMENSIONS_MAX - 1]; /* of one row */
    uint64_t label_count;                       /* names of the elements of the last dimension */
    const uint8_t *labels;                      /* for tensord_label */
    bool is_fixed;                              /* no dimension is free */
};

struct tensord_model {
    uint64_t handle, version, rows_max;
    struct tensord_spec input, output;
    void *memory; /* of the labels: free() it at the end */
};

struct tensord_arena { /* memory that is shared with the daemon */
    uint64_t number, nbytes;
    uint8_t *memory; /* munmap() it at the end */
};

struct tensord_request {
    uint64_t rows;
    const void *data;                     /* the input, to go inline through the socket; or */
    const struct tensord_arena *arena;    /* where input and output lie, and for each */
    uint64_t input_offset, output_offset; /* its beginning there, a multiple of 64 */
};

struct tensord_answer {
    uint64_t request_id;
    struct tensord_error error;   /* code 0: the request succeeded, and here is its output */
    uint64_t dtype, rows, nbytes; /* compare them with the model */
    const void *data;             /* NULL: it lies in the arena, where the request said */
    void *memory;                 /* of data: free() it afterwards, also after an error */
};

/* Connects to this socket; with NULL, to where TENSORD_SOCKET or else the system has one. timeout_ms is the deadline of
 * requests, and a daemon that is silent a little longer counts as lost: no call waits for ever. */
struct tensord *tensord_connect(const char *path, int timeout_ms, struct tensord_error *error);
void tensord_close(struct tensord *client); /* cancels requests; NULL is allowed */

/* Opens "name", "name:version" or "name:label". */
bool tensord_open(struct tensord *client, const char *name, struct tensord_model *model, struct tensord_error *error);
void tensord_label(const struct tensord_spec *spec, uint64_t index, char label[TENSORD_LABEL_BYTES_MAX + 1]);

/* From send to answer, what a request uses of an arena is the daemon's: neither write there nor read. */
bool tensord_attach(struct tensord *client, uint64_t nbytes, struct tensord_arena *arena, struct tensord_error *error);

/* Sends a request and returns its id. Inline data may go afterwards. */
uint64_t tensord_send(struct tensord *client, const struct tensord_model *model, const struct tensord_request *request,
                      struct tensord_error *error);

/* The next answer, in whatever order they come. A failed request has one, too: look at answer->error. */
bool tensord_receive(struct tensord *client, struct tensord_answer *answer, struct tensord_error *error);

#endif
