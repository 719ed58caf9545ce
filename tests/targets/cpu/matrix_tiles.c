/* The instructions of Intel's matrix tiles (AMX) that kernels use, as functions, for processors without them.

   Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18. What raises an exception there
   ends the process here. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TILES = 8, ROWS = 16, LINE = 64 };

static _Thread_local struct {
    int configured;
    int rows[TILES], bytes[TILES];
    uint8_t data[TILES][ROWS][LINE];
} state;

static void require(int holds, const char *what) {
    if (!holds) {
        fprintf(stderr, "matrix tiles: %s\n", what);
        abort();
    }
}

static void require_tile(int tile) {
    require(state.configured, "not configured");
    require(tile >= 0 && tile < TILES && state.rows[tile] > 0, "no such tile");
}

void emulated_ldtilecfg(const uint8_t *palette) {
    require(palette[0] == 1, "unknown palette");
    memset(&state, 0, sizeof state);
    state.configured = 1;
    for (int i = 1; i < 16; i++)
        require(palette[i] == 0 && palette[32 + i] == 0, "reserved bytes of the palette are not zero");
    for (int i = 56; i < 64; i++)
        require(palette[i] == 0, "reserved bytes of the palette are not zero");
    for (int tile = 0; tile < TILES; tile++) {
        state.rows[tile] = palette[48 + tile];
        state.bytes[tile] = palette[16 + 2 * tile] | palette[17 + 2 * tile] << 8;
        require(state.rows[tile] <= ROWS && state.bytes[tile] <= LINE, "a tile is too large");
    }
}

void emulated_tilerelease(void) {
    require(state.configured, "released twice");
    memset(&state, 0, sizeof state);
}

void emulated_tilezero(int8_t tile) {
    require_tile(tile);
    memset(state.data[tile], 0, sizeof state.data[tile]);
}

void emulated_tileloadd64(int8_t tile, const uint8_t *from, int64_t stride) {
    require_tile(tile);
    memset(state.data[tile], 0, sizeof state.data[tile]);
    for (int row = 0; row < state.rows[tile]; row++)
        memcpy(state.data[tile][row], from + row * stride, state.bytes[tile]);
}

void emulated_tilestored64(int8_t tile, uint8_t *to, int64_t stride) {
    require_tile(tile);
    for (int row = 0; row < state.rows[tile]; row++)
        memcpy(to + row * stride, state.data[tile][row], state.bytes[tile]);
}

static void require_product(int sums, int left, int right) {
    require_tile(sums), require_tile(left), require_tile(right);
    require(state.rows[sums] == state.rows[left], "sums and left factor differ in rows");
    require(state.bytes[sums] == state.bytes[right], "sums and right factor differ in columns");
    require(state.bytes[left] == 4 * state.rows[right], "the factors do not fit together");
}

void emulated_tdpbsud(int8_t sums, int8_t left, int8_t right) {
    require_product(sums, left, right);
    for (int m = 0; m < state.rows[sums]; m++)
        for (int n = 0; n < state.bytes[sums] / 4; n++) {
            int32_t sum;
            memcpy(&sum, &state.data[sums][m][4 * n], 4);
            for (int k = 0; k < state.bytes[left]; k++)
                sum += (int8_t)state.data[left][m][k] * (int32_t)state.data[right][k / 4][4 * n + k % 4];
            memcpy(&state.data[sums][m][4 * n], &sum, 4);
        }
}

static float widened(const uint8_t *at) {
    uint32_t bits = (uint32_t)at[1] << 24 | (uint32_t)at[0] << 16;
    float number;
    memcpy(&number, &bits, 4);
    return number;
}

void emulated_tdpbf16ps(int8_t sums, int8_t left, int8_t right) {
    require_product(sums, left, right);
    for (int m = 0; m < state.rows[sums]; m++)
        for (int n = 0; n < state.bytes[sums] / 4; n++) {
            float sum;
            memcpy(&sum, &state.data[sums][m][4 * n], 4);
            for (int k = 0; k < state.bytes[left] / 2; k++)
                sum += widened(&state.data[left][m][2 * k]) *
                       widened(&state.data[right][k / 2][4 * n + 2 * (k % 2)]);
            memcpy(&state.data[sums][m][4 * n], &sum, 4);
        }
}
