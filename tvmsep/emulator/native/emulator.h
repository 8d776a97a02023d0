// What a library made from CUDA C offers, and what its parts share.
#pragma once
#include <stddef.h>
#include <stdint.h>

enum {
  EMU_OK = 0,
  EMU_UNKNOWN_KERNEL = 1,
  EMU_BAD_LAUNCH = 2,   // sizes that the kernel or this emulator does not take
  EMU_ADDRESS = 3,      // an access outside all tensors and shared memory
  EMU_MISALIGNED = 4,   // a vector access at an address that it does not divide
  EMU_RACE = 5,         // two threads, no barrier between them, one of them writes
  EMU_DIVERGENCE = 6,   // threads that wait for others which will not come
};

typedef struct {
  char* base;
  size_t bytes;
} emu_range;

typedef struct {
  uint32_t grid[3], block[3];
  size_t dynamic_shared;
  void** arguments;         // as cuLaunchKernel takes them: a pointer to each
  const emu_range* ranges;  // all memory that kernels may touch
  size_t n_ranges;
  uint64_t seed;  // order of threads between barriers: 0 ascending, 1 descending, else shuffled
  char message[512];
} emu_launch;

typedef struct {
  const char* name;
  void (*call)(void** arguments);
  uint32_t max_threads, granule;
  char *shared, *shared_end;
} emu_kernel;

// The ABI: one function to run a kernel, one to look it up (NULL if there is none).
__attribute__((visibility("default"))) int tvmsep_emulator_launch(const char* kernel,
                                                                  emu_launch* launch);
__attribute__((visibility("default"))) const emu_kernel* tvmsep_emulator_kernel(const char* name);

// --- between runtime.c and check.c ---------------------------------------------------------------

#define EMU_MAX_THREADS 1024
#define EMU_DYNAMIC_SHARED (256 * 1024)

typedef struct {
  uint32_t x, y, z;
} emu_index;

struct emu_fiber;

typedef struct {
  emu_index index;
  uint32_t number;  // x fastest; 32 in a row are a warp
  int state;
  struct emu_fiber* fiber;
  int kind, lane, width;
  uint32_t mask;
  uint64_t value;
  uint32_t warp_epoch;  // warp barriers passed since the last barrier of the block
} emu_thread;

typedef struct {
  const emu_kernel* kernel;
  emu_launch* launch;
  emu_index block;
  char* dynamic;
  uint32_t first_epoch;  // of this block: one more at each barrier, and never twice in a launch
  uint32_t epoch;
  char *stack, *stack_end;  // of the thread that runs
} emu_state;

extern emu_state emu_now;
extern emu_thread* emu_current;

// Ends the launch with a status; the message is printf's, and is followed by where it happened.
_Noreturn void emu_fail(int status, const char* format, ...);

// In check.c, or empty in a library without checks.
void emu_check_begin(void);
void emu_check_end(void);
void emu_check_access(const void* address, size_t bytes, int write);
void emu_check_flying(const void* address, size_t bytes, int flying);
