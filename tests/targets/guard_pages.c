/* Loaded before libc: memory aligned to a cache line, which is what TVM's runtime takes for tensors and workspaces, lies
 * between pages without access, at the end of its pages or, with GUARD_FRONT set, at their beginning; freed memory loses
 * access. Memory of a smaller alignment stays with libc: LLVM takes tens of thousands of tables, and a process may have
 * 65,530 mappings. */
#define _GNU_SOURCE
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

extern void __libc_free(void *);
extern void *__libc_memalign(size_t, size_t);

enum { PAGE = 4096, LINE = 64 };
static const size_t REGION = (size_t)1 << 38;
static char *region, *next;
static uint32_t *page_counts; /* of the memory that begins on a page */
static int front;

__attribute__((constructor)) static void reserve(void) {
  region = mmap(NULL, REGION, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  page_counts = mmap(NULL, REGION / PAGE * sizeof *page_counts, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (region == MAP_FAILED || page_counts == MAP_FAILED) abort();
  front = getenv("GUARD_FRONT") != NULL;
  next = region + PAGE;
}

int posix_memalign(void **result, size_t alignment, size_t bytes) {
  if (region == NULL || alignment < LINE || alignment > PAGE) {
    *result = __libc_memalign(alignment, bytes);
    return *result ? 0 : ENOMEM;
  }
  if (bytes > REGION / 4) return ENOMEM;
  size_t line = alignment > LINE ? alignment : LINE;
  size_t used = (bytes + line - 1) / line * line, pages = (used + PAGE - 1) / PAGE * PAGE;
  if (pages == 0) pages = PAGE;
  char *start = __atomic_fetch_add(&next, pages + PAGE, __ATOMIC_SEQ_CST);
  if (start + pages + PAGE > region + REGION || mprotect(start, pages, PROT_READ | PROT_WRITE) != 0) return ENOMEM;
  page_counts[(start - region) / PAGE] = pages / PAGE;
  *result = front ? start : start + pages - used;
  return 0;
}

void free(void *memory) {
  char *address = memory;
  if (region == NULL || address < region || address >= region + REGION) {
    __libc_free(memory);
    return;
  }
  size_t page = (address - region) / PAGE;
  size_t bytes = (size_t)page_counts[page] * PAGE;
  /* A new mapping merges with its neighbours; one that was written and lost access does not. */
  mmap(region + page * PAGE, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
}
