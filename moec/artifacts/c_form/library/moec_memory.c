/* Memory of runs. An arena is one piece of memory in which a run takes and gives back blocks, first fit. A block that
 * does not fit is allocated apart, and behind the run the arena becomes as large as the run would have needed: runs of
 * sizes that were seen before allocate nothing. */

#include "moec_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    size_t start, size; /* in the arena, or where the arena would be if it were larger */
    char *apart;        /* memory of its own, or NULL */
    int32_t depth;      /* of the step that took it: 0 outside of loops */
} moec_block;

struct moec_arena {
    char *memory;
    size_t size, needed;
    moec_block *blocks; /* those that are taken, by their start */
    size_t count, room;
    int32_t depth;
};

void *moec_allocate(size_t bytes) {
    size_t whole = (bytes + MOEC_LINE - 1) / MOEC_LINE * MOEC_LINE;
    return aligned_alloc(MOEC_LINE, whole ? whole : MOEC_LINE);
}

moec_arena *moec_arena_new(void) { return calloc(1, sizeof(moec_arena)); }

void moec_arena_free(moec_arena *arena) {
    if (arena == NULL) return;
    moec_arena_end_run(arena);
    free(arena->memory);
    free(arena->blocks);
    free(arena);
}

void moec_arena_end_run(moec_arena *arena) {
    for (size_t at = 0; at < arena->count; at++) free(arena->blocks[at].apart);
    arena->count = 0, arena->depth = 0;
    if (arena->needed <= arena->size) return;
    free(arena->memory);
    arena->memory = moec_allocate(arena->needed);
    arena->size = arena->memory == NULL ? 0 : arena->needed;
}

void moec_arena_enter(moec_arena *arena) { arena->depth++; }

void moec_arena_leave(moec_arena *arena) {
    size_t kept = 0;
    for (size_t at = 0; at < arena->count; at++) {
        if (arena->blocks[at].depth < arena->depth)
            arena->blocks[kept++] = arena->blocks[at];
        else
            free(arena->blocks[at].apart);
    }
    arena->count = kept;
    arena->depth--;
}

static bool has_room_for_one_more(moec_arena *arena) {
    if (arena->count < arena->room) return true;
    size_t room = arena->room ? 2 * arena->room : 64;
    moec_block *blocks = realloc(arena->blocks, room * sizeof *blocks);
    if (blocks == NULL) return false;
    arena->blocks = blocks, arena->room = room;
    return true;
}

static void *take(moec_arena *arena, size_t size) {
    if (!has_room_for_one_more(arena)) return NULL;
    size_t at = 0, start = 0;
    while (at < arena->count && arena->blocks[at].start - start < size) {
        start = arena->blocks[at].start + arena->blocks[at].size;
        at++;
    }
    char *apart = NULL;
    if (start + size > arena->size && (apart = moec_allocate(size)) == NULL) return NULL;
    memmove(arena->blocks + at + 1, arena->blocks + at, (arena->count - at) * sizeof(moec_block));
    arena->blocks[at] = (moec_block){start, size, apart, arena->depth};
    arena->count++;
    if (start + size > arena->needed) arena->needed = start + size;
    return apart != NULL ? apart : arena->memory + start;
}

void *moec_take(moec_call *call, double bytes) {
    if (!(bytes >= 0 && bytes < MOEC_MOST_BYTES)) { /* sizes that the program computed may be anything */
        call->error = MOEC_ERROR_MEMORY;
        snprintf(call->text, sizeof call->text, "a tensor of %.0f bytes is beyond memory", bytes);
        return NULL;
    }
    size_t lines = ((size_t)bytes + MOEC_LINE - 1) / MOEC_LINE;
    void *memory = take(call->arena, (lines ? lines : 1) * MOEC_LINE);
    if (memory == NULL) {
        call->error = MOEC_ERROR_MEMORY;
        snprintf(call->text, sizeof call->text, "there is not enough memory for a tensor of %.0f bytes", bytes);
    }
    return memory;
}

void *moec_take_result(moec_call *call, int32_t at, double bytes) {
    moec_result *result = call->results + at;
    return result->place != NULL && bytes <= (double)result->room ? result->place : moec_take(call, bytes);
}

void moec_give(moec_call *call, void *memory) {
    moec_arena *arena = call->arena;
    for (size_t at = 0; at < arena->count; at++) {
        moec_block *block = arena->blocks + at;
        if ((block->apart != NULL ? block->apart : arena->memory + block->start) != memory) continue;
        free(block->apart);
        memmove(block, block + 1, (arena->count - at - 1) * sizeof *block);
        arena->count--;
        return;
    }
}

void *moec_allocate_workspace(int device_kind, int device, uint64_t bytes, int type_code, int type_bits) {
    (void)device_kind, (void)device, (void)type_code, (void)type_bits;
    return bytes < (uint64_t)MOEC_MOST_BYTES ? moec_allocate(bytes) : NULL;
}

int moec_free_workspace(int device_kind, int device, void *memory) {
    (void)device_kind, (void)device;
    free(memory);
    return 0;
}
