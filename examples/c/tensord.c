/* The socket never blocks, and whoever waits, even to write, reads what comes: neither side can hold up the other.
 * Answers wait in a queue until somebody takes them. */
#define _POSIX_C_SOURCE 200809L
#include "tensord.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { HELLO = 1, WELCOME, OPEN, OPENED, ATTACH, ATTACHED, DETACH, INFER, RESULT, ERROR };
enum { INLINE, ARENA };
enum { MAGIC = 0x7444, VERSION = 1, PRIORITY_NORMAL = 1, NAME_BYTES_MAX = 128 };
enum { HEADER_BYTES = 24, HELLO_BYTES = 8, ATTACH_BYTES = 16, INFER_BYTES = 24 };
enum { TENSOR_BYTES = 24, DIMENSION_BYTES = 8 };
enum { META_BYTES_MAX = 262144, REQUEST_META_BYTES_MAX = 4096, PAYLOAD_BYTES_MAX = 67108864 };
enum { CONNECT_PAUSE_MS = 5, NS_PER_MS = 1000000 };
enum { GRACE_MS = 250 }; /* the daemon's own word on a missed deadline says more than our clock */

static const uint8_t ELEMENT_BYTES[] = {0, 1, 1, 2, 4, 8, 1, 2, 2, 4, 8}; /* by data type, from 1 */
static const char SYSTEM_SOCKET[] = "/run/tensord/tensord.sock", OWN_SOCKET[] = "/tensord/tensord.sock";

struct frame { /* from the daemon */
    struct frame *next;
    uint64_t type, request_id, meta_bytes, payload_bytes;
    uint8_t body[]; /* meta, then payload */
};

struct message { /* to the daemon: a frame up to its payload */
    size_t size;
    uint8_t bytes[HEADER_BYTES + REQUEST_META_BYTES_MAX]; /* which no message of ours fills */
};

struct reader { /* what is left of bytes from the daemon */
    const uint8_t *at;
    uint64_t left;
    bool overrun; /* more was taken than there was */
};

struct tensord {
    int socket, timeout_ms;
    int descriptor;            /* received and not yet taken, or -1 */
    struct tensord_error lost; /* code 0: not lost */
    uint64_t last_id;
    uint64_t in_flight, in_flight_max; /* requests sent and not yet received */
    struct frame *answers;             /* the oldest first */
};

static bool fail(struct tensord_error *error, int code, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    error->code = code;
    vsnprintf(error->text, sizeof error->text, format, arguments);
    va_end(arguments);
    return false;
}

static bool lose(struct tensord *client, const char *why) {
    if (client->lost.code == 0) /* the first reason stays: later ones follow from it */
        fail(&client->lost, TENSORD_CONNECTION_LOST, "the connection is lost: %s", why);
    return false;
}

static bool unreadable(struct tensord *client, struct tensord_error *error) {
    lose(client, "the daemon sent an answer that cannot be read");
    *error = client->lost;
    return false;
}

static int64_t after_ms(int64_t ms) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return ((int64_t)now.tv_sec * 1000 + ms) * NS_PER_MS + now.tv_nsec;
}

/* ── fields, little-endian at any address ────────────────────────────────────────────────────────────────────────── */

/* Appends fields of these widths in bytes: "24" is a u16 and a u32. */
static void pack(struct message *message, const char *widths, const uint64_t *values) {
    for (; *widths != '\0'; widths++, values++)
        for (int i = 0; i < *widths - '0'; i++)
            message->bytes[message->size++] = (uint8_t)(*values >> 8 * i);
}

static const uint8_t *take(struct reader *reader, uint64_t size) { /* NULL if there are not so many bytes */
    const uint8_t *bytes = reader->at;
    reader->overrun = reader->overrun || size > reader->left;
    if (reader->overrun)
        return NULL;
    reader->at += size;
    reader->left -= size;
    return bytes;
}

/* Takes fields of these widths; what is missing is 0. NULL skips a field. */
static bool unpack(struct reader *reader, const char *widths, uint64_t *const *values) {
    for (; *widths != '\0'; widths++, values++) {
        const uint8_t *bytes = take(reader, (uint64_t)(*widths - '0'));
        uint64_t value = 0;
        for (int i = 0; bytes != NULL && i < *widths - '0'; i++)
            value |= (uint64_t)bytes[i] << 8 * i;
        if (*values != NULL)
            **values = value;
    }
    return !reader->overrun;
}

static bool unpack_shape(struct reader *reader, uint64_t ndim, uint64_t *shape) {
    for (uint64_t i = 0; i < ndim; i++)
        unpack(reader, "8", (uint64_t *[]){&shape[i]});
    return !reader->overrun;
}

/* UINT64_MAX for an unknown data type, and for what no memory can hold. */
static uint64_t tensor_bytes(uint64_t dtype, uint64_t ndim, const uint64_t *shape) {
    uint64_t bytes = dtype < sizeof ELEMENT_BYTES ? ELEMENT_BYTES[dtype] : 0;
    bool good = bytes > 0;
    for (uint64_t i = 0; i < ndim && good; i++) {
        good = shape[i] == 0 || bytes < SIZE_MAX / shape[i];
        bytes *= shape[i];
    }
    return good ? bytes : UINT64_MAX;
}

static struct reader meta_of(const struct frame *frame) {
    return (struct reader){frame->body, frame->meta_bytes, false};
}

static bool read_error(const struct frame *frame, struct tensord_error *error) {
    struct reader meta = meta_of(frame);
    uint64_t code, text_bytes; /* the others: retry, reserved, retry_after_ms, data_bytes */
    unpack(&meta, "211444", (uint64_t *[]){&code, NULL, NULL, NULL, &text_bytes, NULL});
    const char *text = (const char *)take(&meta, text_bytes);
    if (text == NULL || code == 0)
        return fail(error, TENSORD_CONNECTION_LOST, "the daemon sent an error that cannot be read");
    fail(error, (int)code, "%.*s", (int)text_bytes, text);
    return true;
}

/* ── receiving ───────────────────────────────────────────────────────────────────────────────────────────────────── */

/* Whether there is something to read. A connection on which nothing happens until the deadline is lost. */
static bool wait_for(struct tensord *client, short events, int64_t deadline) {
    struct pollfd waiting = {.fd = client->socket, .events = events};
    int64_t left_ms = (deadline - after_ms(0)) / NS_PER_MS;
    int ready = left_ms <= 0 ? 0 : poll(&waiting, 1, left_ms < INT_MAX ? (int)left_ms : INT_MAX);
    if (ready == 0)
        return lose(client, "the daemon was silent for too long");
    if (ready < 0)
        return errno != EINTR && lose(client, strerror(errno));
    return (waiting.revents & ~POLLOUT) != 0;
}

/* Always recvmsg: recv would take the bytes of an ATTACHED and drop the descriptor that comes with them. */
static ssize_t receive(struct tensord *client, void *bytes, size_t size) {
    union { struct cmsghdr align; char bytes[CMSG_SPACE(sizeof(int))]; } control;
    struct iovec part = {bytes, size};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1,
                             .msg_control = &control, .msg_controllen = sizeof control};
    ssize_t received = recvmsg(client->socket, &message, MSG_CMSG_CLOEXEC);
    struct cmsghdr *item = received > 0 ? CMSG_FIRSTHDR(&message) : NULL;
    if (item != NULL && item->cmsg_level == SOL_SOCKET && item->cmsg_type == SCM_RIGHTS) {
        if (client->descriptor >= 0)
            close(client->descriptor);
        memcpy(&client->descriptor, CMSG_DATA(item), sizeof client->descriptor);
    }
    if (received <= 0 || (message.msg_flags & MSG_CTRUNC) == 0)
        return received;
    errno = EMFILE; /* the usual reason for a descriptor that was dropped */
    return -1;
}

static bool receive_all(struct tensord *client, void *bytes, uint64_t size, int64_t deadline) {
    uint8_t *at = bytes, *end = at + size;
    while (at < end && client->lost.code == 0) {
        ssize_t received = receive(client, at, (size_t)(end - at));
        if (received > 0)
            at += received;
        else if (received == 0)
            lose(client, "the daemon ended it");
        else if (errno == EAGAIN || errno == EINTR)
            wait_for(client, POLLIN, deadline);
        else
            lose(client, strerror(errno));
    }
    return at == end;
}

static struct frame *receive_frame(struct tensord *client, int64_t deadline) {
    uint8_t bytes[HEADER_BYTES];
    if (!receive_all(client, bytes, sizeof bytes, deadline))
        return NULL;
    struct reader header = {bytes, sizeof bytes, false};
    struct frame head = {.next = NULL}, *frame = NULL;
    uint64_t magic;
    unpack(&header, "211488", (uint64_t *[]){&magic, &head.type, NULL, &head.meta_bytes, &head.request_id,
                                             &head.payload_bytes});
    if (magic != MAGIC || head.meta_bytes > META_BYTES_MAX || head.payload_bytes > PAYLOAD_BYTES_MAX)
        lose(client, "the daemon sent something that is no frame");
    else if ((frame = malloc(sizeof *frame + head.meta_bytes + head.payload_bytes)) == NULL)
        lose(client, "there is no memory for an answer");
    else
        *frame = head;
    if (frame == NULL || receive_all(client, frame->body, head.meta_bytes + head.payload_bytes, deadline))
        return frame;
    free(frame);
    return NULL;
}

/* Waits for these events. A frame that comes goes into the queue if it can be an answer, and else is skipped. */
static void take_turn(struct tensord *client, short events, int64_t deadline) {
    struct frame *frame = wait_for(client, events, deadline) ? receive_frame(client, deadline) : NULL;
    if (frame != NULL && frame->request_id >= 1 && frame->request_id <= client->last_id) {
        struct frame **end = &client->answers;
        while (*end != NULL)
            end = &(*end)->next;
        *end = frame;
        return;
    }
    /* A word about the connection is its end. (DuplicateRequestId is not, but our ids only grow.) */
    if (frame != NULL && frame->request_id == 0 && frame->type == ERROR)
        read_error(frame, &client->lost);
    free(frame);
}

/* The answer with this id, or with any if it is 0. */
static struct frame *wait_answer(struct tensord *client, uint64_t id, int64_t deadline, struct tensord_error *error) {
    struct frame **at = &client->answers;
    while (*at == NULL || (id != 0 && (*at)->request_id != id))
        if (*at != NULL) {
            at = &(*at)->next;
        } else if (client->lost.code == 0) {
            take_turn(client, POLLIN, deadline); /* what comes is appended here */
        } else {
            *error = client->lost;
            return NULL;
        }
    struct frame *frame = *at;
    *at = frame->next;
    return frame;
}

/* ── sending ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

/* The beginning of a frame with a new id, client->last_id. */
static struct message begin(struct tensord *client, uint64_t type, uint64_t meta_bytes, uint64_t payload_bytes) {
    struct message message = {.size = 0};
    pack(&message, "211488", (uint64_t[]){MAGIC, type, 0, meta_bytes, ++client->last_id, payload_bytes});
    return message;
}

static bool send_all(struct tensord *client, const void *bytes, uint64_t size, int64_t deadline) {
    const uint8_t *at = bytes;
    while (size > 0 && client->lost.code == 0) {
        ssize_t sent = send(client->socket, at, size, MSG_NOSIGNAL);
        if (sent >= 0) {
            at += sent;
            size -= (uint64_t)sent;
        } else /* full; or broken, and then the last that can be read says why */
            take_turn(client, errno == EAGAIN || errno == EINTR ? POLLIN | POLLOUT : POLLIN, deadline);
    }
    return size == 0;
}

/* Sends a question and waits for its answer, which must have this type. */
static struct frame *ask(struct tensord *client, const struct message *question, uint64_t type,
                         struct tensord_error *error) {
    int64_t deadline = after_ms((int64_t)client->timeout_ms + GRACE_MS);
    send_all(client, question->bytes, question->size, deadline);
    struct frame *frame = wait_answer(client, client->last_id, deadline, error);
    if (frame == NULL || frame->type == type)
        return frame;
    if (frame->type == ERROR)
        read_error(frame, error);
    else
        unreadable(client, error);
    free(frame);
    return NULL;
}

/* ── connecting ──────────────────────────────────────────────────────────────────────────────────────────────────── */

static bool find_socket(const char *path, struct sockaddr_un *address, struct tensord_error *error) {
    const char *chosen = getenv("TENSORD_SOCKET"), *runtime = getenv("XDG_RUNTIME_DIR"), *rest = "";
    if (path == NULL && chosen != NULL && *chosen != '\0')
        path = chosen;
    if (path == NULL && runtime != NULL && *runtime != '\0' && access(SYSTEM_SOCKET, F_OK) != 0) {
        path = runtime;
        rest = OWN_SOCKET;
    }
    if (path == NULL)
        path = SYSTEM_SOCKET;
    *address = (struct sockaddr_un){.sun_family = AF_UNIX};
    int size = snprintf(address->sun_path, sizeof address->sun_path, "%s%s", path, rest);
    return (size_t)size < sizeof address->sun_path ||
           fail(error, TENSORD_DAEMON_NOT_FOUND, "the path %s%s is too long for a socket", path, rest);
}

static bool connect_to(struct tensord *client, const struct sockaddr_un *address, struct tensord_error *error) {
    int64_t deadline = after_ms(client->timeout_ms);
    client->socket = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    while (connect(client->socket, (const struct sockaddr *)address, sizeof *address) != 0) {
        if (errno != EAGAIN || after_ms(0) > deadline)
            return fail(error, TENSORD_DAEMON_NOT_FOUND, "no daemon at %s: %s", address->sun_path, strerror(errno));
        poll(NULL, 0, CONNECT_PAUSE_MS); /* too many others are connecting */
    }
    return true;
}

static bool say_hello(struct tensord *client, struct tensord_error *error) {
    struct message hello = begin(client, HELLO, HELLO_BYTES, 0);
    pack(&hello, "2222", (uint64_t[]){VERSION, VERSION, 0, 0}); /* the oldest, the newest, no tenant, reserved */
    struct frame *frame = ask(client, &hello, WELCOME, error);
    if (frame == NULL)
        return false;
    struct reader meta = meta_of(frame);
    uint64_t version;
    bool good = unpack(&meta, "224", (uint64_t *[]){&version, NULL, &client->in_flight_max}) && version == VERSION;
    free(frame);
    return good || unreadable(client, error);
}

struct tensord *tensord_connect(const char *path, int timeout_ms, struct tensord_error *error) {
    struct sockaddr_un address;
    struct tensord *client = malloc(sizeof *client);
    if (client == NULL) {
        fail(error, TENSORD_NO_MEMORY, "there is no memory for a connection");
        return NULL;
    }
    *client = (struct tensord){.socket = -1, .timeout_ms = timeout_ms, .descriptor = -1};
    if (find_socket(path, &address, error) && connect_to(client, &address, error) && say_hello(client, error))
        return client;
    tensord_close(client);
    return NULL;
}

void tensord_close(struct tensord *client) {
    if (client == NULL)
        return;
    while (client->answers != NULL) {
        struct frame *frame = client->answers;
        client->answers = frame->next;
        free(frame);
    }
    if (client->descriptor >= 0)
        close(client->descriptor);
    if (client->socket >= 0)
        close(client->socket);
    free(client);
}

/* ── models ──────────────────────────────────────────────────────────────────────────────────────────────────────── */

static bool read_spec(struct reader *meta, struct tensord_spec *spec) {
    uint64_t name_bytes, label_bytes = 0;
    unpack(meta, "11114", (uint64_t *[]){&spec->dtype, &spec->ndim, &name_bytes, NULL, &spec->label_count});
    if (spec->ndim >= TENSORD_DIMENSIONS_MAX || !unpack_shape(meta, spec->ndim, spec->shape))
        return false;
    take(meta, name_bytes);
    spec->is_fixed = true;
    for (uint64_t i = 0; i < spec->ndim; i++)
        if (spec->shape[i] == 0) { /* free: its maximum and name follow; this client sends fixed shapes only */
            unpack(meta, "8112", (uint64_t *[]){NULL, NULL, &name_bytes, NULL});
            take(meta, name_bytes);
            spec->is_fixed = false;
        }
    spec->labels = meta->at;
    for (uint64_t i = 0; i < spec->label_count && label_bytes <= TENSORD_LABEL_BYTES_MAX && !meta->overrun; i++) {
        unpack(meta, "2", (uint64_t *[]){&label_bytes});
        take(meta, label_bytes);
    }
    spec->row_bytes = tensor_bytes(spec->dtype, spec->ndim, spec->shape);
    return label_bytes <= TENSORD_LABEL_BYTES_MAX && !meta->overrun && spec->row_bytes != UINT64_MAX;
}

static bool read_model(const struct frame *frame, struct tensord_model *model, uint64_t *inputs, uint64_t *outputs) {
    struct reader meta = meta_of(frame);
    uint64_t name_bytes; /* the one before *inputs is idempotent */
    unpack(&meta, "4441111", (uint64_t *[]){&model->handle, &model->version, &model->rows_max, NULL, inputs, outputs,
                                            &name_bytes});
    take(&meta, name_bytes);
    if (*inputs != 1 || *outputs != 1)
        return !meta.overrun;
    return read_spec(&meta, &model->input) && read_spec(&meta, &model->output);
}

bool tensord_open(struct tensord *client, const char *name, struct tensord_model *model, struct tensord_error *error) {
    uint64_t name_bytes = strlen(name), inputs, outputs;
    *model = (struct tensord_model){.memory = NULL};
    if (name_bytes > NAME_BYTES_MAX)
        return fail(error, TENSORD_BAD_REQUEST, "a model's name has at most %d bytes", NAME_BYTES_MAX);
    struct message question = begin(client, OPEN, 2 + name_bytes, 0);
    pack(&question, "2", &name_bytes);
    memcpy(question.bytes + question.size, name, name_bytes);
    question.size += name_bytes;
    struct frame *frame = ask(client, &question, OPENED, error);
    if (frame == NULL)
        return false;
    bool good = read_model(frame, model, &inputs, &outputs);
    bool is_single = inputs == 1 && outputs == 1, is_fixed = model->input.is_fixed && model->output.is_fixed;
    if (good && is_single && is_fixed) {
        model->memory = frame;
        return true;
    }
    free(frame);
    if (!good)
        return unreadable(client, error);
    const char *what = is_single ? "free dimensions" : "more than one input and one output";
    return fail(error, TENSORD_BAD_REQUEST, "%s has %s", name, what);
}

void tensord_label(const struct tensord_spec *spec, uint64_t index, char label[TENSORD_LABEL_BYTES_MAX + 1]) {
    struct reader labels = {spec->labels, UINT64_MAX, false}; /* read_spec has seen where they end */
    const uint8_t *text = spec->labels;
    uint64_t label_bytes = 0;
    for (uint64_t i = 0; index < spec->label_count && i <= index; i++) {
        unpack(&labels, "2", (uint64_t *[]){&label_bytes});
        text = take(&labels, label_bytes);
    }
    memcpy(label, text, label_bytes);
    label[label_bytes] = '\0';
}

/* ── arenas and requests ─────────────────────────────────────────────────────────────────────────────────────────── */

bool tensord_attach(struct tensord *client, uint64_t nbytes, struct tensord_arena *arena, struct tensord_error *error) {
    struct message question = begin(client, ATTACH, ATTACH_BYTES, 0);
    pack(&question, "448", (uint64_t[]){0, 0, nbytes});
    struct frame *frame = ask(client, &question, ATTACHED, error);
    if (frame == NULL)
        return false;
    struct reader meta = meta_of(frame);
    struct stat file;
    bool good = unpack(&meta, "448", (uint64_t *[]){&arena->number, NULL, &arena->nbytes}) && arena->nbytes == nbytes;
    free(frame);
    /* A file that is shorter than its mapping would be death by SIGBUS. */
    if (!good || fstat(client->descriptor, &file) != 0 || (uint64_t)file.st_size != nbytes)
        return unreadable(client, error);
    arena->memory = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED, client->descriptor, 0);
    close(client->descriptor);
    client->descriptor = -1;
    return arena->memory != MAP_FAILED || fail(error, TENSORD_NO_MEMORY, "cannot map an arena: %s", strerror(errno));
}

uint64_t tensord_send(struct tensord *client, const struct tensord_model *model, const struct tensord_request *request,
                      struct tensord_error *error) {
    const struct tensord_spec *input = &model->input, *output = &model->output;
    uint64_t input_bytes = request->rows * input->row_bytes, output_bytes = request->rows * output->row_bytes;
    uint64_t placed = request->arena != NULL, number = placed ? request->arena->number : 0;
    uint64_t payload_bytes = placed ? 0 : input_bytes;
    uint64_t meta_bytes = INFER_BYTES + TENSOR_BYTES + DIMENSION_BYTES * (1 + input->ndim) + placed * TENSOR_BYTES;
    int64_t deadline = after_ms(client->timeout_ms), patience = deadline + (int64_t)GRACE_MS * NS_PER_MS;
    if (input->ndim >= TENSORD_DIMENSIONS_MAX || payload_bytes > PAYLOAD_BYTES_MAX)
        return fail(error, TENSORD_BAD_REQUEST, "too many dimensions, or too many bytes to go inline");
    if (client->in_flight >= client->in_flight_max)
        return fail(error, TENSORD_TOO_MANY_IN_FLIGHT, "no more requests may be in flight: receive answers first");
    struct message message = begin(client, INFER, meta_bytes, payload_bytes);
    pack(&message, "4111188", (uint64_t[]){model->handle, PRIORITY_NORMAL, 1, placed, 0, (uint64_t)deadline, 0});
    pack(&message, "11114888", (uint64_t[]){0, input->dtype, input->ndim + 1, placed ? ARENA : INLINE, number,
                                            request->input_offset, input_bytes, request->rows});
    for (uint64_t i = 0; i < input->ndim; i++)
        pack(&message, "8", &input->shape[i]);
    if (placed)
        pack(&message, "1111488",
             (uint64_t[]){0, output->dtype, 0, ARENA, number, request->output_offset, output_bytes});
    client->in_flight++;
    if (send_all(client, message.bytes, message.size, patience) &&
        send_all(client, request->data, payload_bytes, patience))
        return client->last_id;
    *error = client->lost;
    return 0;
}

static bool read_result(const struct frame *frame, struct tensord_answer *answer) {
    struct reader meta = meta_of(frame), payload = {frame->body + frame->meta_bytes, frame->payload_bytes, false};
    uint64_t outputs, ndim, lane, shape[TENSORD_DIMENSIONS_MAX] = {0};
    unpack(&meta, "4444224", (uint64_t *[]){NULL, NULL, NULL, NULL, &outputs, NULL, NULL}); /* NULL: version, batch */
    unpack(&meta, "1111488", (uint64_t *[]){NULL, &answer->dtype, &ndim, &lane, NULL, NULL, &answer->nbytes});
    if (outputs != 1 || ndim > TENSORD_DIMENSIONS_MAX || !unpack_shape(&meta, ndim, shape))
        return false;
    answer->rows = shape[0];
    answer->data = lane == INLINE ? take(&payload, answer->nbytes) : NULL;
    return !payload.overrun && answer->nbytes == tensor_bytes(answer->dtype, ndim, shape);
}

bool tensord_receive(struct tensord *client, struct tensord_answer *answer, struct tensord_error *error) {
    *answer = (struct tensord_answer){.memory = NULL};
    if (client->in_flight == 0)
        return fail(error, TENSORD_BAD_REQUEST, "no request is in flight");
    struct frame *frame = wait_answer(client, 0, after_ms((int64_t)client->timeout_ms + GRACE_MS), error);
    if (frame == NULL)
        return false;
    client->in_flight--;
    answer->request_id = frame->request_id;
    bool good = frame->type == ERROR ? read_error(frame, &answer->error)
                                     : frame->type == RESULT && read_result(frame, answer);
    if (good) {
        answer->memory = frame;
        return true;
    }
    free(frame);
    return unreadable(client, error);
}
