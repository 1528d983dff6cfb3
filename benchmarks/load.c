/* A load generator that measures and checks: one process, one thread, N connections with D requests in flight each.
 *
 *     load --to tensord|echo|http --socket PATH|HOST:PORT --input DTYPE:SHAPE --output DTYPE:SHAPE
 *          [--model NAME] [--lane inline|arena] [--input-file FILE --expected-file FILE]
 *          [--connections N] [--depth D] [--seconds S] [--warmup S] [--requests R]
 *          [--rate ARRIVALS_PER_S --deadline-ms MS --seed N] [--patience S] [--check-every N] [--announce]
 *
 * Closed loop, or with --rate an open one with Poisson arrivals. DTYPE is a number of docs/protocol.md, SHAPE has the
 * rows first: 9:1x1024. Without files the request is made up, and its answer must be the same bytes. Prints one JSON
 * object; with --announce, before it a line when the window begins and one when it ends. Exits with 0, 1 when something broke, 3 when an answer was wrong or missing. */
#define _GNU_SOURCE
#include "load.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "histogram.h"

enum { EXIT_WRONG = 3, CHECK_EVERY = 1000 };

static const int64_t PATIENCE_NS = 20000000000;

static const uint64_t ELEMENT_BYTES[] = {0, 1, 1, 2, 4, 8, 1, 2, 2, 4, 8}; /* by data type, from 1 */

static const struct option OPTIONS[] = {
    {"to", required_argument, NULL, 't'},          {"socket", required_argument, NULL, 's'},
    {"model", required_argument, NULL, 'm'},       {"lane", required_argument, NULL, 'l'},
    {"input", required_argument, NULL, 'i'},       {"output", required_argument, NULL, 'o'},
    {"input-file", required_argument, NULL, 'I'},  {"expected-file", required_argument, NULL, 'E'},
    {"connections", required_argument, NULL, 'c'}, {"depth", required_argument, NULL, 'd'},
    {"seconds", required_argument, NULL, 'S'},     {"warmup", required_argument, NULL, 'w'},
    {"requests", required_argument, NULL, 'r'},    {"rate", required_argument, NULL, 'R'},
    {"deadline-ms", required_argument, NULL, 'D'}, {"seed", required_argument, NULL, 'x'},
    {"check-every", required_argument, NULL, 'C'}, {"patience", required_argument, NULL, 'p'},
    {"announce", no_argument, NULL, 'a'},          {NULL, 0, NULL, 0},
};

static double number(const char *text, double least, double most) {
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || !(value >= least && value <= most))
        die("%s is not a number from %g to %g", text, least, most);
    return value;
}

static unsigned choice(const char *text, const char *const *names) {
    for (unsigned i = 0; names[i] != NULL; i++)
        if (strcmp(text, names[i]) == 0)
            return i;
    die("%s is not one of the choices", text);
}

static void add_tensor(struct tensor *tensors, unsigned *count, const char *text) {
    struct tensor tensor = {.dtype = strtoull(text, NULL, 10)};
    const char *at = strchr(text, ':');
    if (at == NULL || tensor.dtype == 0 || tensor.dtype > 10 || *count == TENSORS_MAX)
        die("%s is not DTYPE:SHAPE, or one too many", text);
    tensor.nbytes = ELEMENT_BYTES[tensor.dtype];
    for (at++; *at != '\0'; at += *at == 'x') {
        char *end;
        if (tensor.ndim == DIMENSIONS_MAX)
            die("%s has too many dimensions", text);
        tensor.shape[tensor.ndim] = strtoull(at, &end, 10);
        if (end == at || (*end != 'x' && *end != '\0'))
            die("%s is not DTYPE:SHAPE", text);
        tensor.nbytes *= tensor.shape[tensor.ndim++];
        at = end;
    }
    tensors[(*count)++] = tensor;
}

static void read_options(int argc, char **argv, struct job *job, struct plan *plan, const char **files) {
    static const char *const targets[] = {"tensord", "echo", "http", NULL}, *const lanes[] = {"inline", "arena", NULL};
    for (int option; (option = getopt_long(argc, argv, "", OPTIONS, NULL)) != -1;)
        switch (option) {
        case 't': job->target = (enum target)choice(optarg, targets); break;
        case 's': job->socket = optarg; break;
        case 'm': job->model = optarg; break;
        case 'l': job->arena = choice(optarg, lanes) == 1; break;
        case 'i': add_tensor(job->inputs, &job->input_count, optarg); break;
        case 'o': add_tensor(job->outputs, &job->output_count, optarg); break;
        case 'I': files[0] = optarg; break;
        case 'E': files[1] = optarg; break;
        case 'c': job->connections = (unsigned)number(optarg, 1, CONNECTIONS_MAX - 1); break;
        case 'd': job->depth = (unsigned)number(optarg, 1, SLOTS_MAX - 1); break;
        case 'S': plan->seconds = number(optarg, 0.001, 3600); break;
        case 'w': plan->warmup_s = number(optarg, 0, 3600); break;
        case 'r': plan->requests = (uint64_t)number(optarg, 1, 1e12); break;
        case 'R': plan->rate = number(optarg, 0.001, 1e9); break;
        case 'D': plan->deadline_ns = (int64_t)(number(optarg, 0, 1e9) * 1e6); break;
        case 'x': plan->seed = (uint64_t)number(optarg, 0, 1e15); break;
        case 'p': plan->patience_ns = (int64_t)(number(optarg, 0.001, 3600) * 1e9); break;
        case 'a': plan->announces = true; break;
        case 'C': plan->check_every = (unsigned)number(optarg, 1, 1e9); break;
        default: die("see the beginning of load.c");
        }
    if (job->socket == NULL || job->input_count == 0 || job->output_count == 0 || optind != argc)
        die("give --socket, --input and --output; see the beginning of load.c");
    if (job->target == TENSORD && job->model == NULL)
        die("give --model");
    if (job->target == HTTP && (job->depth != 1 || job->arena))
        die("HTTP has one request in flight on a connection, and no arena");
    if (plan->rate > 0 && plan->requests > 0)
        die("an open loop runs for a time");
    if (plan->requests > 0)
        plan->warmup_s = 0;
}

static uint8_t *read_file(const char *path, uint64_t bytes) {
    uint8_t *memory = malloc(bytes + 1);
    FILE *file = fopen(path, "rb");
    if (memory == NULL || file == NULL || fread(memory, 1, bytes + 1, file) != bytes)
        die("%s cannot be read, or has not %llu bytes", path, (unsigned long long)bytes);
    fclose(file);
    return memory;
}

/* Small floating-point numbers: any model that returns its input returns these, and they differ along the tensor. */
static uint8_t *make_up(uint64_t bytes) {
    float *memory = malloc(bytes + sizeof(float));
    if (memory == NULL)
        die("no memory for a request");
    for (uint64_t i = 0; i < bytes / sizeof(float) + 1; i++)
        memory[i] = (float)(i % 65521) / 64;
    return (uint8_t *)memory;
}

static void make_request(struct job *job, const char *const *files) {
    for (unsigned i = 0; i < job->input_count; i++)
        job->input_bytes += job->inputs[i].nbytes;
    for (unsigned i = 0; i < job->output_count; i++)
        job->output_bytes += job->outputs[i].nbytes;
    if ((files[0] == NULL) != (files[1] == NULL))
        die("give both files or none");
    job->tagged = files[0] == NULL;
    if (job->tagged && (job->input_bytes != job->output_bytes || job->inputs[0].nbytes < TAG_BYTES))
        die("without files the output must be as large as the input, and have %d bytes or more", TAG_BYTES);
    job->input = job->tagged ? make_up(job->input_bytes) : read_file(files[0], job->input_bytes);
    job->expected = job->tagged ? job->input : read_file(files[1], job->output_bytes);
}

static void allow_descriptors(unsigned connections) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_cur < connections + 16)
        die("%u connections need more descriptors than the %llu that are allowed", connections,
            (unsigned long long)limit.rlim_cur);
}

static uint64_t errors_of(const struct counts *counts) {
    uint64_t errors = 0;
    for (unsigned code = 0; code < CODES; code++)
        errors += counts->errors[code];
    return errors;
}

static void print_counts(const char *name, const struct counts *counts) {
    const char *separator = "";
    printf("\"%s\": {\"answered\": %llu, \"late\": %llu, \"wrong\": %llu, \"lost\": %llu, \"unsent\": %llu, "
           "\"failed\": %llu, \"errors\": {",
           name, (unsigned long long)counts->answered, (unsigned long long)counts->late,
           (unsigned long long)counts->wrong, (unsigned long long)counts->lost, (unsigned long long)counts->unsent,
           (unsigned long long)errors_of(counts));
    for (unsigned code = 0; code < CODES; code++)
        if (counts->errors[code] > 0) {
            printf("%s\"%u\": %llu", separator, code, (unsigned long long)counts->errors[code]);
            separator = ", ";
        }
    printf("}}, ");
}

static void print_histogram(const char *name, const struct histogram *histogram) {
    static const struct { const char *name; double fraction; } percentiles[] = {
        {"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}, {"p999", 0.999}};
    printf("\"%s\": {", name);
    for (unsigned i = 0; i < sizeof percentiles / sizeof *percentiles; i++)
        printf("\"%s\": %.3f, ", percentiles[i].name, percentile_us(histogram, percentiles[i].fraction));
    printf("\"max\": %.3f, \"mean\": %.3f, \"samples\": %llu}, ", (double)histogram->max_ns / 1000,
           histogram->count == 0 ? 0 : (double)histogram->sum_ns / (double)histogram->count / 1000,
           (unsigned long long)histogram->count);
}

static void print_figures(const struct job *job, const struct plan *plan, const struct figures *figures) {
    printf("{\"connections\": %u, \"depth\": %u, \"request_bytes\": %llu, \"answer_bytes\": %llu, ", job->connections,
           job->depth, (unsigned long long)job->input_bytes, (unsigned long long)job->output_bytes);
    printf("\"rate\": %.3f, \"offered\": %llu, \"sent\": %llu, \"checked\": %llu, ", plan->rate,
           (unsigned long long)figures->offered, (unsigned long long)figures->total.sent,
           (unsigned long long)figures->checked);
    print_counts("measured", &figures->measured);
    print_counts("total", &figures->total);
    print_histogram("latency_us", figures->latencies);
    print_histogram("send_delay_us", figures->send_delays);
    printf("\"seconds\": %.9f, \"per_s\": %.3f, \"cpu_s\": %.6f}\n", figures->seconds,
           figures->seconds > 0 ? (double)figures->measured.answered / figures->seconds : 0, figures->cpu_seconds);
}

int main(int argc, char **argv) {
    static struct histogram latencies, send_delays;
    struct job job = {.connections = 1, .depth = 1};
    struct plan plan = {.seconds = 1, .seed = 1, .check_every = CHECK_EVERY, .patience_ns = PATIENCE_NS};
    struct figures figures = {.latencies = &latencies, .send_delays = &send_delays};
    const char *files[2] = {NULL, NULL};
    read_options(argc, argv, &job, &plan, files);
    make_request(&job, files);
    allow_descriptors(job.connections);
    struct connection *connections = calloc(job.connections, sizeof *connections);
    if (connections == NULL)
        die("no memory for the connections");
    for (unsigned i = 0; i < job.connections; i++)
        open_connection(&job, &connections[i]);
    run(&job, &plan, connections, &figures);
    print_figures(&job, &plan, &figures);
    return figures.total.wrong + figures.total.lost > 0 ? EXIT_WRONG : EXIT_SUCCESS;
}
