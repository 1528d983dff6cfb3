/* The three languages of the load generator: tensord's protocol, the same frames to an echo, and HTTP/1.1. */
#define _GNU_SOURCE
#include "load.h"

#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "frames.h"

enum { FLOAT32 = 9, PRIORITY_NORMAL = 1, HANDSHAKE_TIMEOUT_S = 20 };
enum { AT_DEADLINE = HEADER_BYTES + 8, RESULT_HEADERS = 24, ERROR_CODE_BYTES = 2 };

static const double TOLERANCE = 1e-3; /* of float32: the last bits depend on the batch that a request runs in */

void die(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    exit(EXIT_FAILURE);
}

static void *allocate(size_t size) {
    void *memory = calloc(1, size > 0 ? size : 1);
    if (memory == NULL)
        die("no memory");
    return memory;
}

static uint64_t aligned(uint64_t bytes) {
    return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

/* ── connecting ──────────────────────────────────────────────────────────────────────────────────────────────────── */

static int connect_to(const char *where) {
    struct sockaddr_un path = {.sun_family = AF_UNIX};
    struct sockaddr_in port = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    const char *colon = strrchr(where, ':');
    bool local = colon == NULL || strchr(where, '/') != NULL;
    struct timeval patience = {.tv_sec = HANDSHAKE_TIMEOUT_S};
    int buffer_bytes = SOCKET_BUFFER_BYTES, on = 1, result;
    int sock = socket(local ? AF_UNIX : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (sock < 0)
        die("socket: %s", strerror(errno));
    setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(sock, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (local) {
        setsockopt(sock, SOL_SOCKET, SO_SNDBUF, &buffer_bytes, sizeof buffer_bytes);
        if ((size_t)snprintf(path.sun_path, sizeof path.sun_path, "%s", where) >= sizeof path.sun_path)
            die("the socket's path is too long: %s", where);
        result = connect(sock, (struct sockaddr *)&path, sizeof path);
    } else {
        setsockopt(sock, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        port.sin_port = htons((uint16_t)atoi(colon + 1));
        result = connect(sock, (struct sockaddr *)&port, sizeof port);
    }
    if (result != 0)
        die("cannot connect to %s: %s", where, strerror(errno));
    return sock;
}

/* Receives exactly so many bytes; always with room for a descriptor, which would else be dropped. */
static void receive_all(int sock, uint8_t *bytes, size_t size, int *descriptor) {
    while (size > 0) {
        union { struct cmsghdr align; char bytes[CMSG_SPACE(sizeof(int))]; } control;
        struct iovec part = {bytes, size};
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control,
                                 .msg_controllen = sizeof control};
        ssize_t received = recvmsg(sock, &message, MSG_CMSG_CLOEXEC);
        if (received <= 0)
            die("no answer while connecting: %s", received == 0 ? "the connection ended" : strerror(errno));
        struct cmsghdr *item = CMSG_FIRSTHDR(&message);
        if (item != NULL && item->cmsg_level == SOL_SOCKET && item->cmsg_type == SCM_RIGHTS)
            memcpy(descriptor, CMSG_DATA(item), sizeof *descriptor);
        bytes += received;
        size -= (size_t)received;
    }
}

/* Sends a frame and returns the first bytes of the answer's meta. */
static uint64_t ask(int sock, const uint8_t *frame, const uint8_t *end, unsigned expected_type, int *descriptor) {
    static uint8_t meta[META_BYTES_MAX];
    uint8_t header[HEADER_BYTES];
    if (send(sock, frame, (size_t)(end - frame), MSG_NOSIGNAL) != end - frame)
        die("cannot send while connecting: %s", strerror(errno));
    receive_all(sock, header, sizeof header, descriptor);
    uint64_t meta_bytes = get(header + AT_META_BYTES, 4);
    if (get(header, 2) != MAGIC || meta_bytes < 4 || meta_bytes > sizeof meta)
        die("the answer is no frame");
    receive_all(sock, meta, meta_bytes, descriptor);
    if (header[AT_TYPE] == ERROR)
        die("refused with error %d: %.*s", (int)get(meta, 2), meta_bytes > 16 ? (int)get(meta + 8, 4) : 0,
            (const char *)meta + 16);
    if (header[AT_TYPE] != expected_type)
        die("an answer of type %d, not %u", header[AT_TYPE], expected_type);
    return get(meta, 4);
}

static void say_hello(int sock) {
    uint8_t frame[64];
    int none = -1;
    uint8_t *at = pack_header(frame, HELLO, 8, 1, 0);
    ask(sock, frame, pack(at, "2222", (uint64_t[]){1, 1, 0, 0}), WELCOME, &none);
}

static uint64_t open_model(int sock, const char *name) {
    uint8_t frame[HEADER_BYTES + 256];
    uint64_t name_bytes = strlen(name);
    int none = -1;
    if (name_bytes > 200)
        die("the model's name is too long");
    uint8_t *at = pack(pack_header(frame, OPEN, 2 + name_bytes, 2, 0), "2", &name_bytes);
    memcpy(at, name, name_bytes);
    return ask(sock, frame, at + name_bytes, OPENED, &none);
}

static uint64_t attach(int sock, struct connection *connection) {
    uint8_t frame[64];
    int descriptor = -1;
    uint8_t *at = pack_header(frame, ATTACH, 16, 3, 0);
    at = pack(at, "448", (uint64_t[]){0, 0, connection->arena_bytes});
    uint64_t number = ask(sock, frame, at, ATTACHED, &descriptor);
    connection->arena =
        mmap(NULL, connection->arena_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, descriptor, 0);
    if (connection->arena == MAP_FAILED)
        die("cannot map the arena: %s", strerror(errno));
    close(descriptor);
    return number;
}

/* ── requests ────────────────────────────────────────────────────────────────────────────────────────────────────── */

static uint8_t *pack_tensor(uint8_t *at, unsigned index, const struct tensor *tensor, uint64_t ndim, uint64_t lane,
                            uint64_t arena, uint64_t offset) {
    at = pack(at, "1111488", (uint64_t[]){index, tensor->dtype, ndim, lane, arena, offset, tensor->nbytes});
    for (uint64_t i = 0; i < ndim; i++)
        at = pack(at, "8", &tensor->shape[i]);
    return at;
}

/* The INFER of a slot, and the tensor headers of the RESULT that it must get. */
static void make_infer(const struct job *job, struct slot *slot, uint64_t handle, uint64_t arena, uint64_t offset) {
    uint64_t lane = job->arena ? LANE_ARENA : LANE_INLINE, payload_bytes = job->arena ? 0 : job->input_bytes;
    uint8_t *meta = slot->head + HEADER_BYTES, *expected = slot->expected_headers;
    arena = job->arena ? arena : 0;
    uint8_t *at = pack(meta, "4111188", (uint64_t[]){handle, PRIORITY_NORMAL, job->input_count,
                                                     job->arena ? job->output_count : 0, 0, 0, 0});
    for (unsigned i = 0; i < job->input_count; i++) {
        at = pack_tensor(at, i, &job->inputs[i], job->inputs[i].ndim, lane, arena, job->arena ? offset : 0);
        offset += aligned(job->inputs[i].nbytes);
    }
    for (unsigned i = 0; i < job->output_count; i++) {
        if (job->arena)
            at = pack_tensor(at, i, &job->outputs[i], 0, lane, arena, offset);
        expected = pack_tensor(expected, i, &job->outputs[i], job->outputs[i].ndim, lane, arena,
                               job->arena ? offset : 0);
        offset += aligned(job->outputs[i].nbytes);
    }
    pack_header(slot->head, INFER, (uint64_t)(at - meta), 0, payload_bytes);
    slot->head_bytes = (size_t)(at - slot->head);
    slot->expected_headers_bytes = (size_t)(expected - slot->expected_headers);
}

static void make_post(const struct job *job, struct slot *slot) {
    int size = snprintf((char *)slot->head, HEAD_BYTES_MAX - TAG_BYTES,
                        "POST /inference HTTP/1.1\r\nHost: benchmark\r\nContent-Type: application/octet-stream\r\n"
                        "Content-Length: %llu\r\n\r\n",
                        (unsigned long long)job->input_bytes);
    slot->head_bytes = (size_t)size;
}

static uint64_t all_aligned(const struct tensor *tensors, unsigned count) {
    uint64_t bytes = 0;
    for (unsigned i = 0; i < count; i++)
        bytes += aligned(tensors[i].nbytes);
    return bytes;
}

/* Writes the inputs where the daemon reads them, once for all requests of the slot. */
static void write_inputs(const struct job *job, struct slot *slot) {
    uint8_t *at = slot->input;
    const uint8_t *from = job->input;
    for (unsigned i = 0; i < job->input_count; i++) {
        memcpy(at, from, job->inputs[i].nbytes);
        at += aligned(job->inputs[i].nbytes);
        from += job->inputs[i].nbytes;
    }
}

void open_connection(const struct job *job, struct connection *connection) {
    uint64_t handle = 1, arena = 1, inputs = all_aligned(job->inputs, job->input_count);
    uint64_t stride = inputs + all_aligned(job->outputs, job->output_count);
    int sock = connect_to(job->socket);
    connection->socket = sock;
    connection->slots = allocate(job->depth * sizeof *connection->slots);
    connection->queue = allocate(job->depth * sizeof *connection->queue);
    connection->idle = allocate(job->depth * sizeof *connection->idle);
    if (job->target == TENSORD) {
        say_hello(sock);
        handle = open_model(sock, job->model);
    }
    if (job->target == TENSORD && job->arena) {
        connection->arena_bytes = job->depth * stride;
        arena = attach(sock, connection);
    }
    for (unsigned i = 0; i < job->depth; i++) {
        struct slot *slot = &connection->slots[i];
        slot->head = allocate(HEAD_BYTES_MAX);
        slot->expected_headers = allocate(HEAD_BYTES_MAX);
        if (job->target == HTTP)
            make_post(job, slot);
        else
            make_infer(job, slot, handle, arena, i * stride);
        if (connection->arena != NULL) {
            slot->input = connection->arena + i * stride;
            slot->output = slot->input + inputs;
            write_inputs(job, slot);
        }
        if (job->tagged && !job->arena)
            slot->head_bytes += TAG_BYTES; /* the payload's first bytes go with the head */
        connection->idle[connection->idle_count++] = slot;
    }
}

void stamp(const struct job *job, struct slot *slot, uint64_t id, int64_t deadline_ns) {
    slot->id = id;
    slot->sent = false;
    if (job->target != HTTP) {
        put(slot->head + AT_REQUEST_ID, id, 8);
        put(slot->head + AT_DEADLINE, (uint64_t)deadline_ns, 8);
    }
    if (job->tagged && !job->arena)
        put(slot->head + slot->head_bytes - TAG_BYTES, id, TAG_BYTES);
    else if (job->tagged && slot->input != NULL)
        put(slot->input, id, TAG_BYTES);
}

/* ── answers ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

/* The slot whose request has this id: an id ends with its slot. */
static struct slot *slot_of(const struct job *job, struct connection *connection, uint64_t id) {
    struct slot *slot = &connection->slots[id % SLOTS_MAX];
    return id % SLOTS_MAX < job->depth && slot->id == id && id != 0 ? slot : NULL;
}

static void read_frame_head(const struct job *job, struct connection *connection) {
    const uint8_t *head = connection->head;
    struct answer *answer = &connection->answer;
    struct slot *slot = slot_of(job, connection, get(head + AT_REQUEST_ID, 8));
    uint64_t meta_bytes = get(head + AT_META_BYTES, 4), payload_bytes = get(head + AT_PAYLOAD_BYTES, 8);
    *answer = (struct answer){.slot = slot, .body_bytes = payload_bytes};
    if (head[AT_TYPE] == ERROR) {
        answer->code = (int)get(head + HEADER_BYTES, ERROR_CODE_BYTES);
        answer->body_bytes += HEADER_BYTES + meta_bytes - connection->head_bytes;
    } else if (head[AT_TYPE] == RESULT && slot != NULL && job->target == ECHO) {
        answer->good = HEADER_BYTES + meta_bytes + payload_bytes ==
                       HEADER_BYTES + get(slot->head + AT_META_BYTES, 4) + get(slot->head + AT_PAYLOAD_BYTES, 8);
    } else if (head[AT_TYPE] == RESULT && slot != NULL) {
        answer->good = meta_bytes == RESULT_HEADERS + slot->expected_headers_bytes &&
                       payload_bytes == (job->arena ? 0 : job->output_bytes) &&
                       get(head + HEADER_BYTES + 16, 2) == job->output_count &&
                       memcmp(head + HEADER_BYTES + RESULT_HEADERS, slot->expected_headers,
                              slot->expected_headers_bytes) == 0;
    }
}

/* A frame's head is its header and meta; of an error's meta the code is enough. */
static size_t frame_head_bytes(const struct connection *connection) {
    const uint8_t *head = connection->head;
    if (connection->head_bytes < HEADER_BYTES)
        return HEADER_BYTES;
    uint64_t meta_bytes = get(head + AT_META_BYTES, 4);
    if (get(head, 2) != MAGIC || (head[AT_TYPE] != ERROR && meta_bytes > HEAD_BYTES_MAX - HEADER_BYTES) ||
        (head[AT_TYPE] == ERROR && meta_bytes < ERROR_CODE_BYTES))
        die("the stream is not one of frames");
    return HEADER_BYTES + (head[AT_TYPE] == ERROR ? ERROR_CODE_BYTES : meta_bytes);
}

static size_t take_frame_head(const struct job *job, struct connection *connection, const uint8_t *bytes, size_t size) {
    size_t taken = 0, wanted;
    while ((wanted = frame_head_bytes(connection)) > connection->head_bytes && taken < size) {
        size_t part = wanted - connection->head_bytes < size - taken ? wanted - connection->head_bytes : size - taken;
        memcpy(connection->head + connection->head_bytes, bytes + taken, part);
        connection->head_bytes += part;
        taken += part;
    }
    connection->in_body = connection->head_bytes >= HEADER_BYTES && wanted == connection->head_bytes;
    if (connection->in_body)
        read_frame_head(job, connection);
    return taken;
}

static void read_http_head(const struct job *job, struct connection *connection) {
    struct answer *answer = &connection->answer;
    const char *head = (const char *)connection->head, *length = strcasestr(head, "\r\ncontent-length:");
    int status = 0;
    if (sscanf(head, "HTTP/1.1 %d", &status) != 1 || status < 100 || status >= CODES || length == NULL)
        die("not an answer of HTTP/1.1 with a length: %.60s", head);
    struct slot *slot = connection->slots[0].id != 0 ? &connection->slots[0] : NULL;
    *answer = (struct answer){.slot = slot, .code = status == 200 ? 0 : status};
    answer->body_bytes = strtoull(strchr(length, ':') + 1, NULL, 10);
    answer->good = answer->body_bytes == job->output_bytes;
}

static size_t take_http_head(const struct job *job, struct connection *connection, const uint8_t *bytes, size_t size) {
    size_t room = HEAD_BYTES_MAX - 1 - connection->head_bytes, before = connection->head_bytes;
    size_t part = size < room ? size : room;
    memcpy(connection->head + before, bytes, part);
    uint8_t *from = connection->head + (before > 3 ? before - 3 : 0);
    uint8_t *end = memmem(from, (size_t)(connection->head + before + part - from), "\r\n\r\n", 4);
    if (end == NULL && part == room)
        die("an HTTP head that does not end");
    connection->head_bytes = end == NULL ? before + part : (size_t)(end + 4 - connection->head);
    connection->head[connection->head_bytes] = '\0';
    connection->in_body = end != NULL;
    if (connection->in_body)
        read_http_head(job, connection);
    return connection->head_bytes - before;
}

size_t take_head(const struct job *job, struct connection *connection, const uint8_t *bytes, size_t size) {
    return job->target == HTTP ? take_http_head(job, connection, bytes, size)
                               : take_frame_head(job, connection, bytes, size);
}

static bool is_near(const uint8_t *got, const uint8_t *expected, uint64_t bytes) {
    for (uint64_t at = 0; at < bytes; at += sizeof(float)) {
        float a, b;
        memcpy(&a, got + at, sizeof a);
        memcpy(&b, expected + at, sizeof b);
        if (!(fabs((double)a - (double)b) <= TOLERANCE * (1 + fabs((double)b))))
            return false;
    }
    return true;
}

/* Compares the outputs, which lie `aligned` in an arena and one behind the other in a payload. */
static bool is_expected(const struct job *job, const uint8_t *got, bool in_arena) {
    const uint8_t *expected = job->expected;
    for (unsigned i = 0; i < job->output_count; i++) {
        uint64_t bytes = job->outputs[i].nbytes, skipped = job->tagged && i == 0 ? TAG_BYTES : 0;
        bool same = job->outputs[i].dtype == FLOAT32 && !job->tagged
                        ? is_near(got, expected, bytes)
                        : memcmp(got + skipped, expected + skipped, bytes - skipped) == 0;
        if (!same)
            return false;
        got += in_arena ? aligned(bytes) : bytes;
        expected += bytes;
    }
    return true;
}

bool is_right(const struct job *job, const struct connection *connection, bool fully) {
    const struct answer *answer = &connection->answer;
    const uint8_t *output = job->arena ? answer->slot->output : answer->body;
    const uint8_t *tag = job->arena && output != NULL ? output : answer->tag;
    if (!answer->good)
        return false;
    if (job->arena && output == NULL)
        return true; /* an echo has no arena: the frame is all there is */
    if (job->tagged && get(tag, TAG_BYTES) != answer->slot->id)
        return false;
    return !fully || is_expected(job, output, job->arena);
}
