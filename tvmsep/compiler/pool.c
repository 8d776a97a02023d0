/* The threads of a compiled network, linked into its library.
 *
 * TVM keeps a pool of threads for each thread that calls it, and pins that one to a CPU. Here the
 * pool belongs to the library: any thread may call the network, works on its share itself, and is
 * left as it was. `tvmsep_threads(n)` starts the pool and puts it in the place of TVM's, 0 ends it;
 * without that call the library runs on TVM's.
 *
 * A launch is one store that idle threads watch, and the answer one store of each of them on a
 * cache line of its own. Threads watch for half a millisecond, which is longer than anything that
 * one thread does alone between two kernels, and then sleep. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

enum { LINE = 128, LOOKS = 64, MOST_THREADS = 4096 };
static const int64_t WATCH_NS = 500000, ALONE_NS = 20000;

/* TVM's ABI: tvm/runtime/c_backend_api.h, tvm/ffi/c_api.h. */
typedef struct {
  void* sync;
  int32_t tasks;
} Group;
typedef int (*Share)(int task, Group* group, void* data);
typedef struct {
  int32_t type;
  uint32_t padding;
  int64_t value;
} Any;
enum { NONE = 0, INT = 1 };

#define EXPORT __attribute__((visibility("default")))
__attribute__((weak)) EXPORT int (*__TVMBackendParallelLaunch)(Share, void*, int);
extern void TVMFFIErrorSetRaisedFromCStr(const char* kind, const char* message);

typedef struct {
  _Alignas(LINE) _Atomic uint32_t done; /* the last launch that this thread has finished */
  pthread_t thread;
  int32_t id;
} Worker;

static struct {
  _Alignas(LINE) _Atomic uint32_t launch; /* which one is to be done */
  Share share;
  void* data;
  Group group;
  int32_t threads; /* the caller's included; 0: no pool */
  _Atomic int32_t ending;
  _Alignas(LINE) _Atomic int32_t failed;
  _Alignas(LINE) _Atomic int32_t sleepers;
  _Alignas(LINE) atomic_flag busy;
  Worker* workers;
  pthread_mutex_t mutex;
  int (*before)(Share, void*, int);
} pool = {.busy = ATOMIC_FLAG_INIT, .mutex = PTHREAD_MUTEX_INITIALIZER};

#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
/* Not a condition variable: the library names no symbol versions, and glibc has two of those. */
static void sleep_until_other(uint32_t seen) {
  syscall(SYS_futex, &pool.launch, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}
static void wake_all(void) {
  syscall(SYS_futex, &pool.launch, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}
#else
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static void sleep_until_other(uint32_t seen) {
  pthread_mutex_lock(&pool.mutex);
  while (atomic_load(&pool.launch) == seen) pthread_cond_wait(&changed, &pool.mutex);
  pthread_mutex_unlock(&pool.mutex);
}
static void wake_all(void) {
  pthread_mutex_lock(&pool.mutex);
  pthread_cond_broadcast(&changed);
  pthread_mutex_unlock(&pool.mutex);
}
#endif

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
  __asm__ __volatile__("yield");
#endif
}

static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static uint32_t next_launch(uint32_t seen) {
  int64_t since = 0;
  for (uint32_t looks = 1;; looks++) {
    uint32_t now = atomic_load_explicit(&pool.launch, memory_order_acquire);
    if (now != seen) return now;
    relax();
    if (looks % LOOKS) continue;
    int64_t at = now_ns();
    if (!since) since = at;
    if (at - since > ALONE_NS) sched_yield(); /* where threads outnumber CPUs, somebody waits */
    if (at - since < WATCH_NS) continue;
    atomic_fetch_add(&pool.sleepers, 1);
    while (atomic_load(&pool.launch) == seen) sleep_until_other(seen);
    atomic_fetch_sub(&pool.sleepers, 1);
  }
}

static void do_share(int32_t id) {
  for (int32_t task = id; task < pool.group.tasks; task += pool.threads)
    if (pool.share(task, &pool.group, pool.data))
      atomic_store_explicit(&pool.failed, 1, memory_order_relaxed);
}

static void* work(void* argument) {
  Worker* self = argument;
  uint32_t seen = 0;
  for (;;) {
    seen = next_launch(seen);
    if (atomic_load_explicit(&pool.ending, memory_order_acquire)) return NULL;
    do_share(self->id);
    atomic_store_explicit(&self->done, seen, memory_order_release);
  }
}

static void announce(void) {
  atomic_fetch_add(&pool.launch, 1);
  if (atomic_load(&pool.sleepers)) wake_all();
}

static int launch(Share share, void* data, int tasks) {
  int alone = atomic_flag_test_and_set_explicit(&pool.busy, memory_order_acquire);
  Group group = {NULL, tasks ? tasks : pool.threads};
  if (alone || pool.threads < 2 || group.tasks < 2) { /* another thread's launch, or nested */
    int failed = 0;
    for (int32_t task = 0; task < group.tasks; task++) failed |= share(task, &group, data);
    if (!alone) atomic_flag_clear_explicit(&pool.busy, memory_order_release);
    if (failed) TVMFFIErrorSetRaisedFromCStr("RuntimeError", "a kernel failed");
    return failed ? -1 : 0;
  }
  pool.share = share;
  pool.data = data;
  pool.group = group;
  atomic_store_explicit(&pool.failed, 0, memory_order_relaxed);
  announce();
  do_share(0);
  uint32_t now = atomic_load_explicit(&pool.launch, memory_order_relaxed);
  for (int32_t i = 0; i < pool.threads - 1; i++)
    for (uint32_t looks = 1;
         atomic_load_explicit(&pool.workers[i].done, memory_order_acquire) != now; looks++)
      if (looks % 1024) relax();
      else sched_yield(); /* its CPU may be ours */
  int failed = atomic_load_explicit(&pool.failed, memory_order_relaxed);
  atomic_flag_clear_explicit(&pool.busy, memory_order_release);
  if (failed) TVMFFIErrorSetRaisedFromCStr("RuntimeError", "a kernel failed in one of its threads");
  return failed ? -1 : 0;
}

static void end(void) {
  if (!pool.threads) return;
  atomic_store(&pool.ending, 1);
  announce();
  for (int32_t i = 0; i < pool.threads - 1; i++) pthread_join(pool.workers[i].thread, NULL);
  free(pool.workers);
  pool.workers = NULL;
  pool.threads = 0;
  __TVMBackendParallelLaunch = pool.before;
}

static int start(int32_t threads) {
  Worker* workers = NULL;
  if (threads > 1 && posix_memalign((void**)&workers, LINE, (threads - 1) * sizeof(Worker)))
    return -1;
  atomic_store(&pool.ending, 0);
  atomic_store(&pool.launch, 0);
  pool.workers = workers;
  pool.threads = 1;
  pool.before = __TVMBackendParallelLaunch;
  for (int32_t i = 0; i < threads - 1; i++) {
    workers[i].id = i + 1;
    atomic_store(&workers[i].done, 0);
    if (pthread_create(&workers[i].thread, NULL, work, &workers[i])) {
      end();
      return -1;
    }
    pool.threads = i + 2;
  }
  __TVMBackendParallelLaunch = launch;
  return 0;
}

/* `tvmsep_threads(n)` in TVM's calling convention. */
EXPORT int __tvm_ffi_tvmsep_threads(void* self, const Any* args, int32_t count, Any* result) {
  (void)self;
  result->type = NONE;
  result->padding = 0;
  result->value = 0;
  if (count != 1 || args[0].type != INT || args[0].value < 0 || args[0].value > MOST_THREADS) {
    TVMFFIErrorSetRaisedFromCStr("ValueError", "tvmsep_threads takes a count from 0 to 4096");
    return -1;
  }
  end();
  if (args[0].value && start((int32_t)args[0].value)) {
    TVMFFIErrorSetRaisedFromCStr("RuntimeError", "the system gives no more threads");
    return -1;
  }
  return 0;
}
