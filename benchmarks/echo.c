/* The limit of one hop: a server that does nothing but read a request's frame to its end and write it back as RESULT.
 *
 *     echo PATH        one process, one thread, epoll; says so when it listens, ends when its standard input does
 *
 * It does not look at the meta and keeps no state. All frames that one read brought go back in one write. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "frames.h"

enum { EVENTS_MAX = 256, READ_BYTES = 256 * 1024, BACKLOG = 4096 };

struct connection {
    int socket;
    uint8_t *bytes;
    size_t room, filled; /* received and not yet sent back */
    size_t whole, sent;  /* of it, frames that are whole; of those, what has gone */
    bool waits_to_write;
};

static void die(const char *what) {
    fprintf(stderr, "echo: %s: %s\n", what, strerror(errno));
    exit(EXIT_FAILURE);
}

static int listen_at(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int buffer_bytes = SOCKET_BUFFER_BYTES, sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if ((size_t)snprintf(address.sun_path, sizeof address.sun_path, "%s", path) >= sizeof address.sun_path)
        die("the path is too long");
    setsockopt(sock, SOL_SOCKET, SO_SNDBUF, &buffer_bytes, sizeof buffer_bytes); /* those accepted inherit it */
    if (bind(sock, (struct sockaddr *)&address, sizeof address) != 0 || listen(sock, BACKLOG) != 0)
        die(path);
    return sock;
}

static void watch(int epoll, int operation, int descriptor, uint32_t events, void *data) {
    struct epoll_event event = {.events = events, .data.ptr = data};
    if (epoll_ctl(epoll, operation, descriptor, &event) != 0)
        die("epoll");
}

static void welcome(int epoll, int listener) {
    struct connection *connection = calloc(1, sizeof *connection);
    int buffer_bytes = SOCKET_BUFFER_BYTES, sock = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (sock < 0 || connection == NULL)
        die("accept");
    setsockopt(sock, SOL_SOCKET, SO_SNDBUF, &buffer_bytes, sizeof buffer_bytes);
    connection->socket = sock;
    watch(epoll, EPOLL_CTL_ADD, sock, EPOLLIN, connection);
}

static void dismiss(struct connection *connection) {
    close(connection->socket);
    free(connection->bytes);
    free(connection);
}

/* Bytes of the frame that begins at `whole`, as far as they are known. */
static size_t frame_bytes(const struct connection *connection) {
    const uint8_t *frame = connection->bytes + connection->whole;
    if (connection->filled - connection->whole < HEADER_BYTES)
        return HEADER_BYTES;
    return HEADER_BYTES + get(frame + AT_META_BYTES, 4) + get(frame + AT_PAYLOAD_BYTES, 8);
}

/* Turns every request that is whole into its answer. */
static void answer(struct connection *connection) {
    while (connection->filled - connection->whole >= HEADER_BYTES &&
           connection->filled - connection->whole >= frame_bytes(connection)) {
        size_t nbytes = frame_bytes(connection);
        connection->bytes[connection->whole + AT_TYPE] = RESULT;
        connection->whole += nbytes;
    }
}

/* Whether the connection goes on. */
static bool receive(struct connection *connection) {
    size_t missing = frame_bytes(connection), room = missing > READ_BYTES ? missing : READ_BYTES;
    if (connection->room < room) {
        connection->bytes = realloc(connection->bytes, room);
        connection->room = room;
        if (connection->bytes == NULL)
            die("memory");
    }
    ssize_t received = recv(connection->socket, connection->bytes + connection->filled,
                            connection->room - connection->filled, MSG_DONTWAIT);
    if (received < 0 && (errno == EAGAIN || errno == EINTR))
        return true;
    if (received <= 0)
        return false;
    connection->filled += (size_t)received;
    answer(connection);
    return true;
}

/* Sends what is whole; what comes behind it moves to the front afterwards. Whether the connection goes on. */
static bool send_back(int epoll, struct connection *connection) {
    if (connection->sent < connection->whole) {
        ssize_t sent = send(connection->socket, connection->bytes + connection->sent,
                            connection->whole - connection->sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno != EAGAIN && errno != EINTR)
            return false;
        connection->sent += sent > 0 ? (size_t)sent : 0;
    }
    bool waits_to_write = connection->sent < connection->whole;
    if (waits_to_write != connection->waits_to_write)
        watch(epoll, EPOLL_CTL_MOD, connection->socket, waits_to_write ? EPOLLOUT : EPOLLIN, connection);
    connection->waits_to_write = waits_to_write;
    if (!waits_to_write && connection->whole > 0) {
        connection->filled -= connection->whole;
        memmove(connection->bytes, connection->bytes + connection->whole, connection->filled);
        connection->whole = connection->sent = 0;
    }
    return true;
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: echo PATH\n");
        return EXIT_FAILURE;
    }
    int epoll = epoll_create1(EPOLL_CLOEXEC), listener = listen_at(argv[1]);
    watch(epoll, EPOLL_CTL_ADD, listener, EPOLLIN, &listener);
    watch(epoll, EPOLL_CTL_ADD, STDIN_FILENO, EPOLLIN, NULL);
    puts("listening");
    fflush(stdout);
    for (;;) {
        struct epoll_event events[EVENTS_MAX];
        int count = epoll_wait(epoll, events, EVENTS_MAX, -1);
        for (int i = 0; i < count; i++) {
            struct connection *connection = events[i].data.ptr;
            if (connection == NULL)
                return EXIT_SUCCESS; /* whoever started it is gone, or wants it to end */
            if (events[i].data.ptr == &listener)
                welcome(epoll, listener);
            else if ((!connection->waits_to_write && !receive(connection)) || !send_back(epoll, connection))
                dismiss(connection);
        }
    }
}
