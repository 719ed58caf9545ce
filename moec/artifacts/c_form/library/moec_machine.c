/* The processor: whether it has the instructions that a program was compiled for. */

#include "moec_machine.h"

#include "moec_internal.h"

#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__aarch64__)

#include <sys/auxv.h>

/* Features of Linux on AArch64 by the bits of the auxiliary vector. */
static const struct {
    const char *name;
    unsigned long type, bit;
} known[] = {
    {"asimd", AT_HWCAP, 1ul << 1},   {"asimdhp", AT_HWCAP, 1ul << 10}, {"asimddp", AT_HWCAP, 1ul << 20},
    {"i8mm", AT_HWCAP2, 1ul << 13}, {"bf16", AT_HWCAP2, 1ul << 14},
};

static bool has(const char *feature) {
    for (size_t at = 0; at < sizeof known / sizeof *known; at++)
        if (strcmp(known[at].name, feature) == 0) return (getauxval(known[at].type) & known[at].bit) != 0;
    return true; /* of no consequence to code that moec generates */
}

static moec_error ask_for(const moec_program *program, const char *feature) {
    (void)program, (void)feature;
    return MOEC_OK;
}

#else

/* The first line of features in /proc/cpuinfo, between spaces, without punctuation; "" where the system has none. */
static void read_features(char *line, size_t room) {
    line[0] = 0;
    FILE *file = fopen("/proc/cpuinfo", "re");
    while (file != NULL && fgets(line, (int)room - 1, file) != NULL && strncmp(line, "flags", 5) != 0) line[0] = 0;
    if (file != NULL) fclose(file);
    char *to = line;
    for (const char *from = line; *from; from++)
        if (strchr("_-.", *from) == NULL) *to++ = *from == '\n' ? ' ' : *from;
    *to = 0;
}

static bool has(const char *feature) {
    static _Thread_local char line[8192];
    char word[64];
    if (line[0] == 0) read_features(line, sizeof line);
    snprintf(word, sizeof word, " %s ", feature);
    return line[0] == 0 || strstr(line, word) != NULL;
}

/* Linux grants the matrix tiles of x86-64 (AMX) only to processes that ask for them. */
static moec_error ask_for(const moec_program *program, const char *feature) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    if (strcmp(feature, "amxtile") != 0) return MOEC_OK;
#if defined(SYS_arch_prctl)
    if (syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0) return MOEC_OK;
#endif
    return moec_fail(MOEC_ERROR_MACHINE, "%s uses matrix tiles (AMX), which the system does not permit", program->name);
}

#endif

moec_error moec_check_machine(const moec_program *program) {
    for (int32_t at = 0; at < program->feature_count; at++) {
        const char *feature = program->features[at];
        if (!has(feature))
            return moec_fail(MOEC_ERROR_MACHINE, "%s was compiled for a processor with %s, which this one lacks; "
                             "compile it with another --target", program->name, feature);
        moec_error error = ask_for(program, feature);
        if (error != MOEC_OK) return error;
    }
    return MOEC_OK;
}
