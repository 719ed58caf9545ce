/* Named sizes of a run's inputs: they are read, solved for, and checked against guards. */

#include "moec_internal.h"

#include <stdio.h>

/* Describe where a size is: the first input that has it. */
static void place_of(const moec_program *program, int32_t size, int32_t *input, int32_t *axis) {
    for (*input = 0; *input < program->input_count; ++*input)
        for (*axis = 0; *axis < program->inputs[*input].rank; ++*axis)
            if (program->input_sizes[*input][*axis] == size) return;
    *input = *axis = 0;
}

static moec_error read_sizes(const moec_program *program, const moec_tensor *inputs, int64_t *sizes) {
    for (int32_t at = 0; at < program->size_count; at++) sizes[at] = -1;
    for (int32_t at = 0; at < program->input_count; at++) {
        for (int32_t axis = 0; axis < inputs[at].rank; axis++) {
            int32_t size = program->input_sizes[at][axis];
            int64_t actual = inputs[at].shape[axis];
            if (size < 0) continue;
            if (sizes[size] < 0) sizes[size] = actual;
            if (sizes[size] == actual) continue;
            int32_t first, there;
            place_of(program, size, &first, &there);
            return moec_fail(MOEC_ERROR_INPUT, "input '%s' has size %lld on axis %d (%s); expected %lld, which %s is in "
                             "input '%s'", program->inputs[at].name, (long long)actual, axis, program->sizes[size].text,
                             (long long)sizes[size], program->sizes[size].text, program->inputs[first].name);
        }
    }
    return MOEC_OK;
}

/* Evaluate a computed size with another value of one of its operands. */
static int64_t value_at(const moec_size *size, int64_t *sizes, int32_t operand, int64_t value, bool *by_zero) {
    int64_t before = sizes[operand];
    sizes[operand] = value;
    int64_t result = size->evaluate(sizes, by_zero);
    sizes[operand] = before;
    return result;
}

/* Whether a computed size equals its actual value. One operand that no input has is set to the solution; a size that
 * cannot be solved is left for the program to check. */
static bool solve(const moec_size *size, int64_t actual, int64_t *sizes) {
    int32_t unknown = -1, count = 0;
    bool by_zero = false;
    for (int32_t at = 0; at < size->operand_count; at++)
        if (sizes[size->operands[at]] < 0) unknown = size->operands[at], count++;
    if (count == 0) return size->evaluate(sizes, &by_zero) == actual || by_zero;
    if (count > 1) return true;
    int64_t start = value_at(size, sizes, unknown, 0, &by_zero);
    int64_t slope = value_at(size, sizes, unknown, 1, &by_zero) - start;
    bool is_linear = value_at(size, sizes, unknown, 2, &by_zero) == start + 2 * slope &&
                     value_at(size, sizes, unknown, 1001, &by_zero) == start + 1001 * slope;
    if (by_zero || slope == 0 || !is_linear) return true;
    int64_t solution = floor_div(actual - start, slope);
    if (solution < 0 || value_at(size, sizes, unknown, solution, &by_zero) != actual) return false;
    sizes[unknown] = solution;
    return true;
}

moec_error moec_bind_sizes(const moec_program *program, const moec_tensor *inputs, int64_t *sizes) {
    moec_error error = read_sizes(program, inputs, sizes);
    if (error != MOEC_OK) return error;
    for (int32_t at = 0; at < program->size_count; at++) {
        const moec_size *size = program->sizes + at;
        int32_t input, axis;
        if (size->evaluate == NULL || sizes[at] < 0 || solve(size, sizes[at], sizes)) continue;
        place_of(program, at, &input, &axis);
        return moec_fail(MOEC_ERROR_INPUT, "input '%s' has size %lld on axis %d; expected %s", program->inputs[input].name,
                         (long long)sizes[at], axis, size->text);
    }
    for (int32_t at = 0; at < program->guard_count; at++) {
        bool by_zero = false;
        if (program->guards[at].holds(sizes, &by_zero) && !by_zero) continue;
        return moec_fail(MOEC_ERROR_INPUT, "the model was exported for sizes with %s only, and cannot run on these",
                         program->guards[at].text);
    }
    return MOEC_OK;
}
