// Runs kernels: blocks one after the other, the threads of a block as fibres.
//
// A thread runs until it reaches a barrier, an exchange within its warp, or its end. A fibre whose
// thread has ended takes the next thread, so a kernel without barriers needs one stack.
#define _GNU_SOURCE
#include "emulator.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#define STACK_BYTES (256 * 1024)
#define PAGE 4096

enum { FRESH, READY, BARRIER, WARP, DONE };
enum { SHUFFLE, UP, DOWN, XOR, BALLOT, WARP_BARRIER, ACTIVE };

struct emu_fiber {
  void* sp;
  char* stack;
};

emu_state emu_now;
emu_thread* emu_current;

static emu_thread threads[EMU_MAX_THREADS];
static uint16_t order[EMU_MAX_THREADS];
static struct emu_fiber fibers[EMU_MAX_THREADS];
static struct emu_fiber* spare[EMU_MAX_THREADS];
static uint32_t n_fibers, n_spare, n_threads;
static void* scheduler_sp;
static sigjmp_buf escape;
static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;
static uint64_t dice;

extern const emu_kernel tvmsep_emulator_kernels[];

void emu_switch(void** save, void* load);
#if defined(__x86_64__)
__asm__(
    ".text\n.globl emu_switch\n.hidden emu_switch\n.type emu_switch,@function\nemu_switch:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n  ret\n");
#define SAVED 7 /* words, the return address last */
#define RETURN 6
#elif defined(__aarch64__)
__asm__(
    ".text\n.globl emu_switch\n.hidden emu_switch\n.type emu_switch,%function\nemu_switch:\n"
    "  sub sp, sp, #160\n"
    "  stp x19, x20, [sp]\n  stp x21, x22, [sp, #16]\n  stp x23, x24, [sp, #32]\n"
    "  stp x25, x26, [sp, #48]\n  stp x27, x28, [sp, #64]\n  stp x29, x30, [sp, #80]\n"
    "  stp d8, d9, [sp, #96]\n  stp d10, d11, [sp, #112]\n  stp d12, d13, [sp, #128]\n"
    "  stp d14, d15, [sp, #144]\n"
    "  mov x9, sp\n  str x9, [x0]\n  mov sp, x1\n"
    "  ldp x19, x20, [sp]\n  ldp x21, x22, [sp, #16]\n  ldp x23, x24, [sp, #32]\n"
    "  ldp x25, x26, [sp, #48]\n  ldp x27, x28, [sp, #64]\n  ldp x29, x30, [sp, #80]\n"
    "  ldp d8, d9, [sp, #96]\n  ldp d10, d11, [sp, #112]\n  ldp d12, d13, [sp, #128]\n"
    "  ldp d14, d15, [sp, #144]\n"
    "  add sp, sp, #160\n  ret\n");
#define SAVED 20
#define RETURN 11
#else
#error "fibres are written for x86-64 and aarch64"
#endif

// --- what kernels call ---------------------------------------------------------------------------

emu_index emu_thread_index(void) { return emu_current->index; }
emu_index emu_block_index(void) { return emu_now.block; }
emu_index emu_block_size(void) {
  const uint32_t* b = emu_now.launch->block;
  return (emu_index){b[0], b[1], b[2]};
}
emu_index emu_grid_size(void) {
  const uint32_t* g = emu_now.launch->grid;
  return (emu_index){g[0], g[1], g[2]};
}
void* emu_dynamic_shared(void) { return emu_now.dynamic; }

static void wait_as(int state) {
  emu_current->state = state;
  emu_switch(&emu_current->fiber->sp, scheduler_sp);
}

void emu_barrier(void) { wait_as(BARRIER); }

uint64_t emu_exchange(int kind, uint32_t mask, uint64_t value, int lane, int width) {
  emu_thread* t = emu_current;
  if (kind <= BALLOT && !(mask >> (t->number % 32) & 1))
    emu_fail(EMU_DIVERGENCE, "a warp operation with mask 0x%x by a lane outside it", mask);
  t->kind = kind, t->mask = mask, t->value = value, t->lane = lane, t->width = width;
  wait_as(WARP);
  return t->value;
}

void emu_warp_barrier(uint32_t mask) { emu_exchange(WARP_BARRIER, mask, 0, 0, 32); }

// All lanes of a warp meet, for an operation on fragments; memory is ordered among none.
void emu_matrix(const void* place, uint32_t row_bytes) {
  if ((uintptr_t)place % 32 || row_bytes % 16)
    emu_fail(EMU_MISALIGNED, "a matrix at %p with rows of %u bytes: 32 and 16 must divide them",
             place, row_bytes);
  emu_exchange(BALLOT, ~0u, 0, 0, 32);
}

uint32_t emu_active_mask(void) { return (uint32_t)emu_exchange(ACTIVE, 0, 0, 0, 32); }

// --- copies that a thread starts and later waits for -----------------------------------------------

#define MAX_COPIES 256

typedef struct {
  char* to;
  const char* from;
  uint32_t bytes, group;
} async_copy;

static struct {
  uint32_t n, groups;  // copies under way; groups committed
  async_copy copies[MAX_COPIES];
} under_way[EMU_MAX_THREADS];

// The shared memory that an address of 32 bits, as assembly takes them, stands for.
static char* shared_at(uint32_t address) {
  char* base = emu_now.kernel->shared;
  size_t offset = address - (uint32_t)(uintptr_t)base;
  if (base && offset < (size_t)(emu_now.kernel->shared_end - base)) return base + offset;
  return emu_now.dynamic + (address - (uint32_t)(uintptr_t)emu_now.dynamic);
}

void emu_async_copy(uint32_t to, const void* from, uint32_t bytes, int predicate) {
  uint32_t me = emu_current->number, n = under_way[me].n;
  if (n == MAX_COPIES) emu_fail(EMU_BAD_LAUNCH, "over %d asynchronous copies", MAX_COPIES);
  char* place = shared_at(to);
  // The hardware may write at any time from now on, and has when the thread has waited: until then
  // what is there is undefined.
  emu_check_access(place, bytes, 1);
  emu_check_flying(place, bytes, 1);
  memset(place, 0xff, bytes);
  if (predicate) emu_check_access(from, bytes, 0);
  under_way[me].copies[n] =
      (async_copy){place, predicate ? from : NULL, bytes, under_way[me].groups};
  under_way[me].n++;
}

void emu_async_commit(void) { under_way[emu_current->number].groups++; }

void emu_async_wait(uint32_t newest) {
  uint32_t me = emu_current->number, kept = 0;
  for (uint32_t i = 0; i < under_way[me].n; i++) {
    async_copy c = under_way[me].copies[i];
    if (c.group + newest >= under_way[me].groups) {
      under_way[me].copies[kept++] = c;
      continue;
    }
    emu_check_flying(c.to, c.bytes, 0);
    emu_check_access(c.to, c.bytes, 1);
    if (c.from) memcpy(c.to, c.from, c.bytes);
    else memset(c.to, 0, c.bytes);
  }
  under_way[me].n = kept;
}

// --- the scheduler -------------------------------------------------------------------------------

static void fiber_main(void) {
  for (;;) {
    emu_now.kernel->call(emu_now.launch->arguments);
    wait_as(DONE);
  }
}

static void make_ready(struct emu_fiber* f) {
  void** top = (void**)(f->stack + STACK_BYTES) - 1;
#if defined(__x86_64__)
  top -= SAVED;  // a return address at 16 n + 8, as after a call
  memset(top, 0, SAVED * sizeof *top);
#else
  top -= SAVED + 1, top = (void**)((uintptr_t)top & ~(uintptr_t)15);
  memset(top, 0, SAVED * sizeof *top);
#endif
  top[RETURN] = (void*)fiber_main;
  f->sp = top;
}

static struct emu_fiber* take_fiber(void) {
  if (n_spare) return spare[--n_spare];
  struct emu_fiber* f = &fibers[n_fibers];
  f->stack = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (f->stack == MAP_FAILED) emu_fail(EMU_BAD_LAUNCH, "no memory for the stack of a thread");
  mprotect(f->stack, PAGE, PROT_NONE);
  n_fibers++;
  make_ready(f);
  return f;
}

static uint64_t roll(void) {
  dice ^= dice << 13, dice ^= dice >> 7, dice ^= dice << 17;
  return dice;
}

static void choose_order(void) {
  uint64_t seed = emu_now.launch->seed;
  for (uint32_t i = 0; i < n_threads; i++)
    order[i] = (uint16_t)(seed == 1 ? n_threads - 1 - i : i);
  if (seed > 1)
    for (uint32_t i = n_threads; i > 1; i--) {
      uint32_t j = (uint32_t)(roll() % i);
      uint16_t o = order[i - 1];
      order[i - 1] = order[j], order[j] = o;
    }
}

static void run(emu_thread* t) {
  if (t->state == FRESH) t->fiber = take_fiber();
  emu_current = t;
  emu_now.stack = t->fiber->stack, emu_now.stack_end = t->fiber->stack + STACK_BYTES;
  emu_switch(&scheduler_sp, t->fiber->sp);
  if (t->state == DONE) spare[n_spare++] = t->fiber, t->fiber = NULL;
}

static uint64_t exchanged(const emu_thread* warp, uint32_t here, uint32_t lane) {
  const emu_thread* t = &warp[lane];
  int width = t->width, at = (int)lane % width, from;
  if (t->kind == SHUFFLE) from = t->lane & (width - 1);
  else if (t->kind == UP) from = at - t->lane < 0 ? at : at - t->lane;
  else if (t->kind == DOWN) from = at + t->lane >= width ? at : at + t->lane;
  else from = (at ^ t->lane) >= width ? at : at ^ t->lane;
  uint32_t source = lane - (uint32_t)at + (uint32_t)from;
  // What a lane outside the mask holds is undefined: all bits set is NaN in every type.
  return here >> source & 1 ? warp[source].value : ~(uint64_t)0;
}

// Completes what the lanes of a warp wait for, once none of them can go on otherwise.
static int settle_warp(emu_thread* warp, uint32_t lanes) {
  uint32_t waiting = 0, settled = 0;
  uint64_t results[32];
  for (uint32_t i = 0; i < lanes; i++) waiting |= (uint32_t)(warp[i].state == WARP) << i;
  if (!waiting) return 0;
  for (uint32_t i = 0; i < lanes; i++) {
    const emu_thread* t = &warp[i];
    if (!(waiting >> i & 1) || settled >> i & 1 || t->kind == ACTIVE) continue;
    uint32_t live = lanes == 32 ? ~0u : (1u << lanes) - 1, group = t->mask & live, peers = 0;
    for (uint32_t j = 0; j < lanes; j++)
      peers |= (uint32_t)((waiting >> j & 1) && warp[j].kind == t->kind && warp[j].mask == t->mask)
               << j;
    if ((peers & group) != group) continue;
    uint32_t votes = 0;
    for (uint32_t j = 0; j < lanes; j++)
      if (group >> j & 1) votes |= (uint32_t)(warp[j].value & 1) << j;
    for (uint32_t j = 0; j < lanes; j++) {
      if (!(group >> j & 1)) continue;
      if (t->kind == BALLOT) results[j] = votes;
      else if (t->kind == WARP_BARRIER) results[j] = 0;
      else results[j] = exchanged(warp, group, j);
    }
    // Memory is ordered among all lanes or, as far as the checks know, among none.
    if (t->kind == WARP_BARRIER && group == live)
      for (uint32_t j = 0; j < lanes; j++) warp[j].warp_epoch++;
    settled |= group;
  }
  if (!settled)
    for (uint32_t i = 0; i < lanes; i++)
      if ((waiting >> i & 1) && warp[i].kind == ACTIVE) settled |= 1u << i;
  for (uint32_t i = 0; i < lanes; i++) {
    if (!(settled >> i & 1)) continue;
    warp[i].value = warp[i].kind == ACTIVE ? settled : results[i];
    warp[i].state = READY;
  }
  if (!settled) {
    for (uint32_t i = 0; i < lanes; i++)
      if (waiting >> i & 1) emu_current = &warp[i];
    emu_fail(EMU_DIVERGENCE, "a warp operation waits for lanes of mask 0x%x that are elsewhere",
             emu_current->mask);
  }
  return 1;
}

static void run_block(void) {
  for (uint32_t i = 0; i < n_threads; i++) {
    threads[i].state = FRESH, threads[i].warp_epoch = 0;
    under_way[i].n = under_way[i].groups = 0;
  }
  for (;;) {
    choose_order();
    for (int again = 1; again;) {
      for (uint32_t i = 0; i < n_threads; i++) {
        emu_thread* t = &threads[order[i]];
        if (t->state == FRESH || t->state == READY) run(t);
      }
      again = 0;
      for (uint32_t i = 0; i < n_threads; i += 32)
        again |= settle_warp(threads + i, n_threads - i < 32 ? n_threads - i : 32);
    }
    uint32_t waiting = 0;
    for (uint32_t i = 0; i < n_threads; i++)
      if (threads[i].state == BARRIER) waiting++, emu_current = &threads[i];
    if (!waiting) return;
    if (waiting != n_threads)
      emu_fail(EMU_DIVERGENCE, "%u of %u threads wait at a barrier that the others passed by",
               waiting, n_threads);
    emu_now.epoch++;
    for (uint32_t i = 0; i < n_threads; i++) threads[i].state = READY, threads[i].warp_epoch = 0;
  }
}

// --- failures ------------------------------------------------------------------------------------

static char* append(char* at, const char* end, const char* format, va_list args) {
  int n = vsnprintf(at, (size_t)(end - at), format, args);
  return n < 0 ? at : at + n < end ? at + n : (char*)end - 1;
}

_Noreturn void emu_fail(int status, const char* format, ...) {
  emu_launch* l = emu_now.launch;
  const char* end = l->message + sizeof l->message;
  va_list args;
  va_start(args, format);
  char* at = append(l->message, end, format, args);
  va_end(args);
  if (emu_current) {
    emu_index b = emu_now.block, t = emu_current->index;
    snprintf(at, (size_t)(end - at), " (kernel %s, block %u,%u,%u, thread %u,%u,%u)",
             emu_now.kernel->name, b.x, b.y, b.z, t.x, t.y, t.z);
  }
  siglongjmp(escape, status);
}

static void on_signal(int number, siginfo_t* info, void* context) {
  (void)context;
  emu_fail(EMU_ADDRESS, "signal %d at address %p", number, info->si_addr);
}

static int bad_launch(const emu_kernel* k, const emu_launch* l) {
  const uint32_t *g = l->grid, *b = l->block;
  uint64_t threads_per_block = (uint64_t)b[0] * b[1] * b[2];
  return !g[0] || !g[1] || !g[2] || g[1] > 65535 || g[2] > 65535 || !threads_per_block ||
         b[2] > 64 || threads_per_block > EMU_MAX_THREADS || l->dynamic_shared > EMU_DYNAMIC_SHARED ||
         (k->max_threads && threads_per_block > k->max_threads);
}

// --- the way in ----------------------------------------------------------------------------------

const emu_kernel* tvmsep_emulator_kernel(const char* name) {
  for (const emu_kernel* k = tvmsep_emulator_kernels; k->name; k++)
    if (!strcmp(k->name, name)) return k;
  return NULL;
}

static void run_grid(void) {
  const emu_launch* l = emu_now.launch;
  const uint32_t *g = l->grid, *b = l->block;
  n_threads = b[0] * b[1] * b[2];
  for (uint32_t i = 0; i < n_threads; i++) {
    threads[i].number = i;
    threads[i].index = (emu_index){i % b[0], i / b[0] % b[1], i / b[0] / b[1]};
  }
  size_t shared = (size_t)(emu_now.kernel->shared_end - emu_now.kernel->shared);
  uint64_t blocks = (uint64_t)g[0] * g[1] * g[2];
  for (uint64_t i = 0; i < blocks; i++) {
    uint64_t n = l->seed % 2 ? blocks - 1 - i : i;
    emu_now.block = (emu_index){(uint32_t)(n % g[0]), (uint32_t)(n / g[0] % g[1]),
                                (uint32_t)(n / g[0] / g[1])};
    emu_now.first_epoch = ++emu_now.epoch;
    // Shared memory starts undefined: NaN, so that what was not written shows in the results.
    if (shared) memset(emu_now.kernel->shared, 0xff, shared);
    if (l->dynamic_shared) memset(emu_now.dynamic, 0xff, l->dynamic_shared);
    run_block();
  }
}

int tvmsep_emulator_launch(const char* name, emu_launch* l) {
  const emu_kernel* k = tvmsep_emulator_kernel(name);
  l->message[0] = 0;
  if (!k) return EMU_UNKNOWN_KERNEL;
  if (bad_launch(k, l)) {
    snprintf(l->message, sizeof l->message,
             "grid %u,%u,%u, block %u,%u,%u, %zu bytes of dynamic shared memory: over the limits of "
             "kernel %s (%u threads)", l->grid[0], l->grid[1], l->grid[2], l->block[0], l->block[1],
             l->block[2], l->dynamic_shared, k->name, k->max_threads);
    return EMU_BAD_LAUNCH;
  }
  static char signal_stack[64 * 1024];
  stack_t alternate = {.ss_sp = signal_stack, .ss_size = sizeof signal_stack}, old_stack;
  struct sigaction catch = {.sa_sigaction = on_signal,
                            .sa_flags = SA_SIGINFO | SA_ONSTACK}, old_segv, old_bus;
  pthread_mutex_lock(&one_at_a_time);
  char* dynamic = emu_now.dynamic;
  if (!dynamic)
    dynamic = mmap(NULL, EMU_DYNAMIC_SHARED, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (dynamic == MAP_FAILED) {
    pthread_mutex_unlock(&one_at_a_time);
    snprintf(l->message, sizeof l->message, "no memory for shared memory");
    return EMU_BAD_LAUNCH;
  }
  emu_now = (emu_state){.kernel = k, .launch = l, .dynamic = dynamic};
  emu_current = NULL;
  dice = l->seed * 0x9e3779b97f4a7c15u | 1;
  sigaltstack(&alternate, &old_stack);
  sigaction(SIGSEGV, &catch, &old_segv);
  sigaction(SIGBUS, &catch, &old_bus);
  int status = sigsetjmp(escape, 1);
  if (!status) {
    emu_check_begin();
    run_grid();
  } else {
    n_spare = 0;
    for (uint32_t i = 0; i < n_fibers; i++) make_ready(&fibers[i]), spare[n_spare++] = &fibers[i];
  }
  emu_check_end();
  sigaction(SIGBUS, &old_bus, NULL);
  sigaction(SIGSEGV, &old_segv, NULL);
  sigaltstack(&old_stack, NULL);
  pthread_mutex_unlock(&one_at_a_time);
  return status;
}
