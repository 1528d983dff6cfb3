/* The frames of docs/protocol.md, as far as the load generator and the echo need them. Fields are little-endian at any
 * address, as on every host that the daemon runs on, so they are copied as they lie. */
#ifndef FRAMES_H
#define FRAMES_H

#include <stdint.h>
#include <string.h>

enum { HELLO = 1, WELCOME, OPEN, OPENED, ATTACH, ATTACHED, DETACH, INFER, RESULT, ERROR };
enum { LANE_INLINE, LANE_ARENA };
enum { MAGIC = 0x7444, HEADER_BYTES = 24, META_BYTES_MAX = 262144 };
enum { SOCKET_BUFFER_BYTES = 4 << 20 }; /* as the daemon asks for on its side */

/* Header: magic u16, type u8, flags u8, meta_bytes u32, request_id u64, payload_bytes u64. */
enum { AT_TYPE = 2, AT_META_BYTES = 4, AT_REQUEST_ID = 8, AT_PAYLOAD_BYTES = 16 };

static inline uint64_t get(const uint8_t *at, size_t width) {
    uint64_t value = 0;
    memcpy(&value, at, width);
    return value;
}

static inline void put(uint8_t *at, uint64_t value, size_t width) {
    memcpy(at, &value, width);
}

/* Writes fields of these widths in bytes ("24" is a u16 and a u32) and returns where the next one goes. */
static inline uint8_t *pack(uint8_t *at, const char *widths, const uint64_t *values) {
    for (; *widths != '\0'; widths++, values++) {
        put(at, *values, (size_t)(*widths - '0'));
        at += *widths - '0';
    }
    return at;
}

static inline uint8_t *pack_header(uint8_t *at, uint64_t type, uint64_t meta_bytes, uint64_t id, uint64_t payload_bytes) {
    return pack(at, "211488", (uint64_t[]){MAGIC, type, 0, meta_bytes, id, payload_bytes});
}

#endif
