#ifndef MOEC_SESSION_H
#define MOEC_SESSION_H

#include "moec_internal.h"

#include <stdatomic.h>

/* Pages of a held state. `length`: entries in use along the growing axis; `growth`: those that the last run appended,
 * or tried to. */
typedef struct moec_held_memory {
    void *pages;
    int64_t count, length, growth;
} moec_held_memory;

struct moec_session {
    moec_model *model;
    int64_t batch, most, length; /* most: of tokens, 0 for no limit */
    bool is_incremental;         /* the model has states, so that a run computes only the new tokens */
    int64_t *seen;               /* [batch, length], of a model without states */
    uint8_t *mask;               /* [batch, length], 0 for padding; NULL: there is none */
    moec_tensor *states;         /* in the order of the program's states; without data where they are held */
    moec_held_memory *held;      /* in the order of the program's held states; NULL where it is given them */
    _Atomic bool is_used;
};

/* States before the first token: zeros, and of length 0 where they grow. */
moec_error moec_states_begin(moec_session *session, int64_t max_tokens);
void moec_states_end(moec_session *session);

/* Whether an input is a state in pages, which has a shape and no data. */
bool moec_states_hold(const moec_session *session, int32_t input);
void moec_states_as_inputs(const moec_session *session, moec_tensor *inputs);

/* Make room for what a run appends, and describe the pages. */
moec_error moec_states_make_room(moec_session *session, const int64_t *sizes, moec_pages *pages);

/* Keep the states among a run's outputs; what is appended to pages becomes part of the states. */
void moec_states_advance(moec_session *session, moec_tensor *outputs);
moec_error moec_states_truncate(moec_session *session, int64_t length);
moec_error moec_states_copy(const moec_session *session, moec_session *copy);

#endif
