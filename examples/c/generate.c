/* Continue a text of a language model: token ids in, token ids out. Each run computes only the new tokens.
 *
 *     ./generate weights.bin 20 5 17 42        # 20 tokens after 5, 17, 42
 */

#include "char_lm.h"

#include <stdio.h>
#include <stdlib.h>

static int64_t largest(const float *scores, int64_t count) {
    int64_t best = 0;
    for (int64_t id = 1; id < count; id++)
        if (scores[id] > scores[best]) best = id;
    return best;
}

static int failed(void) {
    fprintf(stderr, "error: %s\n", moec_last_error());
    return 1;
}

int main(int count, char **arguments) {
    if (count < 4) {
        fprintf(stderr, "usage: %s WEIGHTS COUNT ID...\n", arguments[0]);
        return 2;
    }
    int64_t length = count - 3, ids[length];
    for (int64_t at = 0; at < length; at++) ids[at] = atoll(arguments[3 + at]);

    moec_model *model;
    moec_session *session;
    if (moec_load(&char_lm_program, arguments[1], NULL, &model) != MOEC_OK) return failed();
    if (moec_session_begin(model, 0, 1, &session) != MOEC_OK) return failed();

    moec_tensor logits = {0}; /* allocated by the first run, and used again by the others */
    moec_error error = moec_session_run(session, ids, length, 1, &logits);
    for (int left = atoi(arguments[2]); error == MOEC_OK && left > 0; left--) {
        int64_t next = largest(logits.data, logits.shape[2]);
        printf("%lld%c", (long long)next, left > 1 ? ' ' : '\n');
        if (left > 1) error = moec_session_run(session, &next, 1, 1, &logits);
    }
    int status = error == MOEC_OK ? 0 : failed();

    moec_release(&logits);
    moec_session_end(session);
    moec_free(model);
    return status;
}
