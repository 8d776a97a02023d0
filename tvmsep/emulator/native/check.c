// Checks each access of a kernel: bounds, alignment, and races between threads.
//
// The compiler's thread sanitizer calls these functions before each access that is not to a local
// variable. Shadow cells say who last wrote and read a granule (the smallest type that the source
// accesses) since the launch began, and whether an asynchronous copy to it is under way: until its thread
// has waited for it nobody else may touch it. Threads of a block are ordered by its barriers (epochs), lanes
// of a warp also by the warp's; blocks are not ordered at all. Atomics are not checked for races.
#define _GNU_SOURCE
#include "emulator.h"

#include <string.h>
#include <sys/mman.h>

typedef struct {
  uint32_t write_epoch, read_epoch;  // 0: not in this launch
  uint32_t write_warp_epoch, read_warp_epoch;
  uint32_t flying;  // first epoch of the block in which an asynchronous copy to it is under way
  uint16_t writer, reader;
  uint8_t several;        // several lanes of the reader's warp read, in the same warp epoch
  uint8_t several_warps;  // in this epoch
  uint8_t other_blocks;   // an earlier block read it
} cell;

typedef struct {
  char *base, *end;
  cell* cells;
  size_t mapped;
  const char* what;
  int of_block;  // each block has its own: what other blocks did there was elsewhere
} region;

#define MAX_REGIONS 4096
static region regions[MAX_REGIONS];
static size_t n_regions;
static uint32_t granule;
static region* last;

extern char __ehdr_start __attribute__((visibility("hidden")));
extern char _end __attribute__((visibility("hidden")));

static void add(char* base, size_t bytes, const char* what, int of_block) {
  if (!bytes) return;
  if (n_regions == MAX_REGIONS) emu_fail(EMU_BAD_LAUNCH, "over %d allocations", MAX_REGIONS);
  size_t mapped = (bytes / granule + 2) * sizeof(cell);
  cell* cells = mmap(NULL, mapped, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (cells == MAP_FAILED) emu_fail(EMU_BAD_LAUNCH, "no memory to check accesses with");
  regions[n_regions++] = (region){base, base + bytes, cells, mapped, what, of_block};
}

void emu_check_begin(void) {
  const emu_kernel* k = emu_now.kernel;
  granule = k->granule;
  last = NULL;
  add(k->shared, (size_t)(k->shared_end - k->shared), "shared memory", 1);
  add(emu_now.dynamic, emu_now.launch->dynamic_shared, "dynamic shared memory", 1);
  for (size_t i = 0; i < emu_now.launch->n_ranges; i++)
    add(emu_now.launch->ranges[i].base, emu_now.launch->ranges[i].bytes, "a tensor", 0);
}

void emu_check_end(void) {
  while (n_regions) {
    n_regions--;
    munmap(regions[n_regions].cells, regions[n_regions].mapped);
  }
}

static region* find(char* at) {
  if (last && at >= last->base && at < last->end) return last;
  for (size_t i = 0; i < n_regions; i++)
    if (at >= regions[i].base && at < regions[i].end) return last = &regions[i];
  return NULL;
}

static _Noreturn void outside(char* at, size_t bytes, int write) {
  const char *verb = write ? "write" : "read", *what = "all memory";
  size_t distance = ~(size_t)0, length = 0;
  const char* side = "outside";
  for (size_t i = 0; i < n_regions; i++) {
    const region* r = &regions[i];
    size_t d = at < r->base ? (size_t)(r->base - at) : (size_t)(at + bytes - r->end);
    if (d >= distance) continue;
    distance = d, what = r->what, length = (size_t)(r->end - r->base);
    side = at < r->base ? "before" : "past the end of";
  }
  emu_fail(EMU_ADDRESS, "%s of %zu bytes, %zu bytes %s %s of %zu bytes", verb, bytes, distance, side,
           what, length);
}

static _Noreturn void race(const region* r, const cell* c, size_t at, const char* verbs,
                           const char* whom) {
  emu_fail(EMU_RACE, "%s of byte %zu of %s, in no order with %s (reader %u, writer %u)", verbs, at,
           r->what, whom, c->reader, c->writer);
}

static void after_writes(const region* r, const cell* c, size_t at, const char* verb) {
  const emu_thread* t = emu_current;
  if (c->write_epoch == emu_now.epoch) {
    int other_warp = c->writer / 32 != t->number / 32;
    if (c->writer != t->number && (other_warp || c->write_warp_epoch == t->warp_epoch))
      race(r, c, at, verb, "a write by another thread of the block");
  } else if (!r->of_block && c->write_epoch && c->write_epoch < emu_now.first_epoch) {
    race(r, c, at, verb, "a write by another block");
  }
}

static void on_write(const region* r, cell* c, size_t at) {
  uint32_t epoch = emu_now.epoch, me = emu_current->number, warp_epoch = emu_current->warp_epoch;
  after_writes(r, c, at, "write");
  if (c->read_epoch == epoch) {
    int apart = c->several_warps || c->reader / 32 != me / 32;
    int same = c->read_warp_epoch == warp_epoch && (c->several || c->reader != me);
    if (apart || same) race(r, c, at, "write", "a read by another thread of the block");
  }
  int other_block = c->other_blocks || (c->read_epoch && c->read_epoch < emu_now.first_epoch);
  if (other_block && !r->of_block)
    race(r, c, at, "write", "a read by another block");
  c->write_epoch = epoch, c->writer = (uint16_t)me, c->write_warp_epoch = warp_epoch;
}

static void on_read(const region* r, cell* c, size_t at) {
  uint32_t epoch = emu_now.epoch, me = emu_current->number, warp_epoch = emu_current->warp_epoch;
  after_writes(r, c, at, "read");
  if (c->read_epoch != epoch) {
    if (c->read_epoch && c->read_epoch < emu_now.first_epoch) c->other_blocks = 1;
    c->several = c->several_warps = 0;
  } else if (c->reader / 32 != me / 32) {
    c->several_warps = 1;
  } else if (c->read_warp_epoch != warp_epoch) {
    c->several = 0;
  } else if (c->reader != me) {
    c->several = 1;
  }
  c->read_epoch = epoch, c->reader = (uint16_t)me, c->read_warp_epoch = warp_epoch;
}

static void access(void* address, size_t bytes, int write) {
  char* at = address;
  if (at >= emu_now.stack && at < emu_now.stack_end) return;
  const region* r = find(at);
  if (!r || at + bytes > r->end) {
    if (at >= &__ehdr_start && at < &_end && !r) return;  // the library's own variables
    outside(at, bytes, write);
  }
  size_t first = (size_t)(at - r->base), end = first + bytes;
  for (size_t i = first / granule; i * granule < end; i++) {
    if (r->cells[i].flying == emu_now.first_epoch)
      emu_fail(EMU_RACE, "%s of byte %zu of %s, to which an asynchronous copy is under way",
               write ? "write" : "read", i * granule, r->what);
    (write ? on_write : on_read)(r, &r->cells[i], i * granule);
  }
}

static void aligned(void* address, size_t bytes, int write) {
  if ((uintptr_t)address % bytes)
    emu_fail(EMU_MISALIGNED, "%s of %zu bytes at address %p", write ? "write" : "read", bytes,
             address);
  access(address, bytes, write);
}

void emu_check_access(const void* address, size_t bytes, int write) {
  aligned((void*)address, bytes, write);
}

void emu_check_flying(const void* address, size_t bytes, int flying) {
  const region* r = find((char*)address);
  if (!r) return;
  size_t first = (size_t)((char*)address - r->base);
  for (size_t i = first / granule; i * granule < first + bytes; i++)
    r->cells[i].flying = flying ? emu_now.first_epoch : 0;
}

// --- what the compiler calls ---------------------------------------------------------------------

#define ACCESS(n)                                                        \
  void __tsan_read##n(void* p) { aligned(p, n, 0); }                     \
  void __tsan_write##n(void* p) { aligned(p, n, 1); }                    \
  void __tsan_read_write##n(void* p) { aligned(p, n, 0), aligned(p, n, 1); } \
  void __tsan_unaligned_read##n(void* p) { access(p, n, 0); }            \
  void __tsan_unaligned_write##n(void* p) { access(p, n, 1); }           \
  void __tsan_unaligned_read_write##n(void* p) { access(p, n, 0), access(p, n, 1); }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)

void __tsan_init(void) {}

// Copies of a vector that the kernel does not look into: the device does each in one access.
static void copied(void* address, size_t n, int write) {
  if (n == 2 || n == 4 || n == 8 || n == 16) aligned(address, n, write);
  else access(address, n, write);
}

void* __tsan_memcpy(void* to, const void* from, size_t n) {
  copied((void*)from, n, 0);
  copied(to, n, 1);
  return memcpy(to, from, n);
}
void* __tsan_memmove(void* to, const void* from, size_t n) {
  copied((void*)from, n, 0);
  copied(to, n, 1);
  return memmove(to, from, n);
}
void* __tsan_memset(void* to, int value, size_t n) {
  access(to, n, 1);
  return memset(to, value, n);
}

static void atomic(void* p, size_t n) {
  const region* r = find(p);
  if (!r || (char*)p + n > r->end) outside(p, n, 1);
}

#define ATOMIC(bits, T)                                                                    \
  T __tsan_atomic##bits##_fetch_add(T* p, T v, int order) {                                \
    (void)order;                                                                           \
    atomic(p, sizeof *p);                                                                  \
    T old = *p;                                                                            \
    *p = old + v;                                                                          \
    return old;                                                                            \
  }                                                                                        \
  T __tsan_atomic##bits##_exchange(T* p, T v, int order) {                                 \
    (void)order;                                                                           \
    atomic(p, sizeof *p);                                                                  \
    T old = *p;                                                                            \
    *p = v;                                                                                \
    return old;                                                                            \
  }                                                                                        \
  T __tsan_atomic##bits##_load(const T* p, int order) {                                    \
    (void)order;                                                                           \
    atomic((void*)p, sizeof *p);                                                           \
    return *p;                                                                             \
  }                                                                                        \
  int __tsan_atomic##bits##_compare_exchange_strong(T* p, T* want, T v, int order, int fail) { \
    (void)order, (void)fail;                                                               \
    atomic(p, sizeof *p);                                                                  \
    if (*p == *want) return *p = v, 1;                                                     \
    return *want = *p, 0;                                                                  \
  }                                                                                        \
  int __tsan_atomic##bits##_compare_exchange_weak(T* p, T* want, T v, int order, int fail) {   \
    return __tsan_atomic##bits##_compare_exchange_strong(p, want, v, order, fail);         \
  }                                                                                        \
  T __tsan_atomic##bits##_compare_exchange_val(T* p, T want, T v, int order, int fail) {   \
    __tsan_atomic##bits##_compare_exchange_strong(p, &want, v, order, fail);               \
    return want;                                                                           \
  }
ATOMIC(32, uint32_t)
ATOMIC(64, uint64_t)
