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
    const struct tensord_spec *input = &demo->model.input, *output = &demo->model.output;
    demo->client = tensord_connect(socket, TIMEOUT_MS, &error);
    if (demo->client == NULL || !tensord_open(demo->client, "digits", &demo->model, &error))
        return complain(&error);
    if (input->dtype == TENSORD_FLOAT32 && input->row_bytes == sizeof demo->images[0] &&
        output->dtype == TENSORD_FLOAT32 && output->ndim == 1 && output->shape[0] <= CLASSES_MAX)
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

/* Whether a request of so many rows got what the model promises, in the lane that it asked for. */
static bool is_result(const struct demo *demo, const struct tensord_answer *answer, uint64_t rows, bool is_inline) {
    if (answer->error.code != 0)
        return complain(&answer->error);
    if (answer->dtype == TENSORD_FLOAT32 && answer->rows == rows && (answer->data != NULL) == is_inline &&
        answer->nbytes == rows * demo->model.output.row_bytes)
        return true;
    fprintf(stderr, "the output is not what the model promises\n");
    return false;
}

/* A request and its answer: with no other in flight, the next answer is the one. */
static bool infer(struct demo *demo, const struct tensord_model *model, const struct tensord_request *request,
                  struct tensord_answer *answer) {
    struct tensord_error error;
    if (tensord_send(demo->client, model, request, &error) != 0 && tensord_receive(demo->client, answer, &error))
        return true;
    return complain(&error);
}

static bool classify_inline(struct demo *demo) {
    struct tensord_request request = {.rows = 1, .data = demo->images};
    struct tensord_answer answer = {.memory = NULL};
    bool good = infer(demo, &demo->model, &request, &answer) && is_result(demo, &answer, 1, true);
    if (good)
        print_digit(demo, "inline", answer.data);
    free(answer.memory);
    return good;
}

static bool classify_in_arena(struct demo *demo) {
    struct tensord_error error;
    struct tensord_arena arena;
    struct tensord_answer answer = {.memory = NULL};
    if (!tensord_attach(demo->client, ARENA_BYTES, &arena, &error))
        return complain(&error);
    struct tensord_request request = {
        .rows = 1, .arena = &arena, .input_offset = INPUT_OFFSET, .output_offset = OUTPUT_OFFSET};
    memcpy(arena.memory + INPUT_OFFSET, demo->images[0], sizeof demo->images[0]);
    bool good = infer(demo, &demo->model, &request, &answer) && is_result(demo, &answer, 1, false);
    if (good)
        print_digit(demo, "arena", arena.memory + OUTPUT_OFFSET);
    free(answer.memory);
    munmap(arena.memory, ARENA_BYTES);
    return good;
}

/* A row of 8x8 lacks the channel. The daemon says so, and the connection goes on. */
static bool be_refused(struct demo *demo) {
    struct tensord_model wrong = demo->model;
    struct tensord_request request = {.rows = 1, .data = demo->images};
    struct tensord_answer answer;
    wrong.input.ndim = 2;
    wrong.input.shape[0] = wrong.input.shape[1] = 8;
    if (!infer(demo, &wrong, &request, &answer))
        return false;
    printf("refused: error %d, %s\n", answer.error.code, answer.error.text);
    free(answer.memory);
    return answer.error.code != 0;
}

/* The answers come in any order; each must be to a request that has none yet, and have its rows and the digit. */
static bool matches(const struct demo *demo, const struct tensord_answer *answer, uint64_t ids[REQUESTS]) {
    float scores[CLASSES_MAX];
    uint64_t i = 0;
    while (i < REQUESTS && ids[i] != answer->request_id)
        i++;
    if (i == REQUESTS)
        return false;
    ids[i] = 0; /* which is nobody's id */
    return is_result(demo, answer, 1 + i % ROWS_MAX, true) &&
           favourite(demo, answer->data, scores) == demo->digit;
}

static bool pipeline(struct demo *demo) {
    struct tensord_error error;
    struct tensord_answer answer;
    uint64_t ids[REQUESTS];
    int matched = 0;
    for (uint64_t i = 0; i < REQUESTS; i++) {
        struct tensord_request request = {.rows = 1 + i % ROWS_MAX, .data = demo->images};
        ids[i] = tensord_send(demo->client, &demo->model, &request, &error);
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
