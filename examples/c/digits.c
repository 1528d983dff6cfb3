/* Reads a handwritten digit with the model `digits`: inline, through an arena, wrongly, and a hundred times at once.
 *
 *     ./digits [SOCKET] [< 64 numbers from 0 (paper) to 1 (ink), row by row]
 */
#include "tensord.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PIXELS = 64, CLASSES_MAX = 16, REQUESTS = 100, ROWS_MAX = 8, TIMEOUT_MS = 30000 };
enum { ARENA_BYTES = 4096, INPUT_OFFSET = 0, OUTPUT_OFFSET = 1024 }; /* of one row, and multiples of 64 */

static const char BUILT_IN[] = "00bgc200" /* a 3, in levels from 0 to g, the sixteenth */
                               "07g6ad00"
                               "00203g00"
                               "0003c900"
                               "000agc00"
                               "00303f70"
                               "03g76e80"
                               "019fgc10";

struct demo {
    struct tensord *client;
    struct tensord_model model;
    float images[ROWS_MAX][PIXELS]; /* the same image in each row */
    uint64_t digit;                 /* what the first answer said */
};

static bool complain(const struct tensord_error *error) {
    fprintf(stderr, "error %d: %s\n", error->code, error->text);
    return false;
}

/* From standard input; where that is a terminal or empty, the one that is built in. */
static bool read_image(float image[PIXELS]) {
    size_t count = 0;
    int found = EOF;
    for (float value; !isatty(STDIN_FILENO) && (found = scanf("%f", &value)) == 1; count++)
        image[count % PIXELS] = value;
    for (size_t i = 0; count == 0 && i < PIXELS; i++)
        image[i] = (float)(BUILT_IN[i] <= '9' ? BUILT_IN[i] - '0' : BUILT_IN[i] - 'a' + 10) * 15 / 255;
    return found == EOF && (count == 0 || count == PIXELS);
}

static bool open_digits(struct demo *demo, const char *socket) {
    struct tensord_error error;
    const struct tensord_spec *output = &demo->model.output;
    demo->client = tensord_connect(socket, TIMEOUT_MS, &error);
    if (demo->client == NULL || !tensord_open(demo->client, "digits", &demo->model, &error))
        return complain(&error);
    if (tensord_rows(&demo->model.input, 1).nbytes == sizeof demo->images[0] && output->dtype == TENSORD_FLOAT32 &&
        demo->model.input.dtype == TENSORD_FLOAT32 && output->ndim == 1 && output->shape[0] <= CLASSES_MAX)
        return true;
    fprintf(stderr, "the model `digits` is not one for 8x8 images\n");
    return false;
}

/* The class with the greatest of the scores, which lie at any address. */
static uint64_t favourite(const struct demo *demo, const void *data, float scores[CLASSES_MAX]) {
    uint64_t best = 0;
    memcpy(scores, data, demo->model.output.shape[0] * sizeof *scores);
    for (uint64_t i = 1; i < demo->model.output.shape[0]; i++)
        best = scores[i] > scores[best] ? i : best;
    return best;
}

static void print_digit(struct demo *demo, const char *lane, const void *data) {
    float scores[CLASSES_MAX], sum = 0;
    char label[TENSORD_LABEL_BYTES_MAX + 1];
    demo->digit = favourite(demo, data, scores);
    for (uint64_t i = 0; i < demo->model.output.shape[0]; i++)
        sum += expf(scores[i] - scores[demo->digit]); /* softmax: the scores are logits */
    tensord_label(&demo->model.output, demo->digit, label);
    printf("%s: label %s, confidence %.4f, scores", lane, label, 1 / (double)sum);
    for (uint64_t i = 0; i < demo->model.output.shape[0]; i++)
        printf(" %.9g", (double)scores[i]);
    printf("\n");
}

/* Whether a request of so many rows got what the model promises. */
static bool is_result(const struct demo *demo, const struct tensord_answer *answer, uint64_t rows) {
    const struct tensord_tensor *output = &answer->output;
    if (answer->error.code != 0)
        return complain(&answer->error);
    return output->dtype == TENSORD_FLOAT32 && output->shape[0] == rows &&
           output->nbytes == tensord_rows(&demo->model.output, rows).nbytes;
}

/* A request and its answer. With no other in flight, the next answer is the one. */
static bool infer(struct demo *demo, const struct tensord_tensor *input, const struct tensord_tensor *range,
                  struct tensord_answer *answer) {
    struct tensord_error error;
    if (tensord_send(demo->client, &demo->model, input, range, &error) != 0 &&
        tensord_receive(demo->client, answer, &error))
        return true;
    return complain(&error);
}

static struct tensord_tensor inline_rows(struct demo *demo, uint64_t rows) {
    struct tensord_tensor input = tensord_rows(&demo->model.input, rows);
    input.data = demo->images;
    return input;
}

static bool classify_inline(struct demo *demo) {
    struct tensord_tensor input = inline_rows(demo, 1);
    struct tensord_answer answer;
    if (!infer(demo, &input, NULL, &answer))
        return false;
    bool good = is_result(demo, &answer, 1) && answer.output.data != NULL;
    if (good)
        print_digit(demo, "inline", answer.output.data);
    free(answer.memory);
    return good;
}

static bool classify_in_arena(struct demo *demo) {
    struct tensord_error error;
    struct tensord_arena arena;
    struct tensord_answer answer;
    if (!tensord_attach(demo->client, ARENA_BYTES, &arena, &error))
        return complain(&error);
    struct tensord_tensor input = tensord_rows(&demo->model.input, 1), range = tensord_rows(&demo->model.output, 1);
    input.arena = range.arena = &arena;
    input.offset = INPUT_OFFSET;
    range.offset = OUTPUT_OFFSET;
    memcpy(arena.memory + INPUT_OFFSET, demo->images[0], sizeof demo->images[0]);
    bool answered = infer(demo, &input, &range, &answer), good = answered && is_result(demo, &answer, 1);
    if (good)
        print_digit(demo, "arena", arena.memory + OUTPUT_OFFSET);
    if (answered)
        free(answer.memory);
    munmap(arena.memory, ARENA_BYTES);
    return good;
}

/* The rows are missing from the shape. The daemon says so, and the connection goes on. */
static bool be_refused(struct demo *demo) {
    struct tensord_tensor input = inline_rows(demo, 1);
    struct tensord_answer answer;
    input.ndim = demo->model.input.ndim;
    memcpy(input.shape, demo->model.input.shape, sizeof demo->model.input.shape);
    if (!infer(demo, &input, NULL, &answer))
        return false;
    printf("refused: error %d, %s\n", answer.error.code, answer.error.text);
    free(answer.memory);
    return answer.error.code != 0;
}

/* The answers come in any order; each must be of a request that has none yet, and have its rows and digit. */
static bool matches(const struct demo *demo, const struct tensord_answer *answer, uint64_t ids[REQUESTS]) {
    float scores[CLASSES_MAX];
    for (uint64_t i = 0; i < REQUESTS; i++)
        if (ids[i] == answer->request_id) {
            ids[i] = 0;
            return is_result(demo, answer, 1 + i % ROWS_MAX) && answer->output.data != NULL &&
                   favourite(demo, answer->output.data, scores) == demo->digit;
        }
    return false;
}

static bool pipeline(struct demo *demo) {
    struct tensord_error error;
    struct tensord_answer answer;
    uint64_t ids[REQUESTS];
    int matched = 0;
    for (uint64_t i = 0; i < REQUESTS; i++) {
        struct tensord_tensor input = inline_rows(demo, 1 + i % ROWS_MAX);
        ids[i] = tensord_send(demo->client, &demo->model, &input, NULL, &error);
        if (ids[i] == 0)
            return complain(&error);
    }
    for (int i = 0; i < REQUESTS; i++) {
        if (!tensord_receive(demo->client, &answer, &error))
            return complain(&error);
        matched += matches(demo, &answer, ids);
        free(answer.memory);
    }
    printf("pipelined: %d of %d answers matched\n", matched, REQUESTS);
    return matched == REQUESTS;
}

int main(int argc, char **argv) {
    struct demo demo = {.client = NULL};
    if (!read_image(demo.images[0])) {
        fprintf(stderr, "standard input is not %d numbers\n", PIXELS);
        return EXIT_FAILURE;
    }
    for (size_t row = 1; row < ROWS_MAX; row++)
        memcpy(demo.images[row], demo.images[0], sizeof demo.images[0]);
    bool good = open_digits(&demo, argc > 1 ? argv[1] : NULL) && classify_inline(&demo) && classify_in_arena(&demo) &&
                be_refused(&demo) && pipeline(&demo);
    free(demo.model.memory);
    tensord_close(demo.client);
    return good ? EXIT_SUCCESS : EXIT_FAILURE;
}
