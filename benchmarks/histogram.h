/* Durations in nanoseconds, counted in buckets that are 1/256 wide: a percentile is off by 0.2 % at most, and no sample
 * is ever left out. */
#ifndef HISTOGRAM_H
#define HISTOGRAM_H

#include <stdint.h>

enum { FINE = 256, BUCKETS = FINE * (64 - 8 + 1) };

struct histogram {
    uint64_t counts[BUCKETS];
    uint64_t count, sum_ns, max_ns;
};

/* Below FINE a bucket is a nanosecond. Above, each doubling has FINE of them: the highest set bit chooses the doubling,
 * the eight bits below it the bucket. */
static inline unsigned bucket_of(uint64_t ns) {
    unsigned doubling = ns < FINE ? 0 : 63 - 8 - (unsigned)__builtin_clzll(ns) + 1;
    return doubling == 0 ? (unsigned)ns : doubling * FINE + (unsigned)(ns >> (doubling - 1)) - FINE;
}

static inline uint64_t bucket_start(unsigned bucket) {
    unsigned doubling = bucket / FINE;
    return doubling == 0 ? bucket : (uint64_t)(bucket % FINE + FINE) << (doubling - 1);
}

static inline void observe(struct histogram *histogram, int64_t duration_ns) {
    uint64_t ns = duration_ns > 0 ? (uint64_t)duration_ns : 0;
    histogram->counts[bucket_of(ns)]++;
    histogram->count++;
    histogram->sum_ns += ns;
    histogram->max_ns = ns > histogram->max_ns ? ns : histogram->max_ns;
}

/* The duration that this fraction (below 1) of the samples does not exceed, in microseconds; 0 without samples. */
static inline double percentile_us(const struct histogram *histogram, double fraction) {
    uint64_t rank = (uint64_t)(fraction * (double)histogram->count), seen = 0;
    for (unsigned bucket = 0; bucket < BUCKETS; bucket++) {
        seen += histogram->counts[bucket];
        if (seen > rank) {
            double middle = ((double)bucket_start(bucket) + (double)bucket_start(bucket + 1)) / 2;
            return (middle < (double)histogram->max_ns ? middle : (double)histogram->max_ns) / 1000;
        }
    }
    return 0;
}

#endif
