/* The threads of a compiled network, linked into its library.
 *
 * TVM keeps a pool of threads for each thread that calls it, and pins that one to a CPU. Here the
 * pool belongs to the library: any thread may call the network, works on its share itself, and is
 * left as it was. `tvmsep_threads(n)` starts the pool and puts it in the place of TVM's, 0 ends it;
 * without that call the library runs on TVM's.
 *
 * A launch is cut into `CUTS` tasks a thread. Each thread takes its own one after the other, then
 * what others have not begun: a core that is slower, or busy with something else, keeps nobody
 * waiting for more than a task, and who is on time does the same part of the image in every layer.
 * What a thread takes next is a word of its own on a line of its own, with the number of the launch
 * in it: one that comes late finds nothing left there, or tasks of the launch that runs meanwhile.
 * Threads watch for half a millisecond, which is longer than anything that one thread does alone
 * between two kernels, and then sleep. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

enum { LINE = 128, LOOKS = 64, MOST_THREADS = 4096, CUTS = 4, HELPED = 8 };
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
  _Alignas(LINE) _Atomic uint64_t next; /* launch << 32 | end << 16 | task */
  pthread_t thread; /* not of the first one, whose tasks the caller takes */
  int32_t id;
} Worker;

static struct {
  _Alignas(LINE) _Atomic uint32_t launch; /* which one is to be done */
  Share _Atomic share;
  void* _Atomic data;
  _Atomic int32_t tasks;
  int32_t threads; /* the caller's included; 0: no pool */
  _Atomic int32_t ending;
  _Alignas(LINE) _Atomic int32_t left; /* tasks that are not done yet */
  _Atomic int32_t failed;
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

/* Take a worker's next task, if it has one left: nothing of a launch is overwritten before its last
 * task is done, so what was read here belongs to the launch whose task was taken. */
static int do_next(Worker* of) {
  uint64_t next = atomic_load_explicit(&of->next, memory_order_acquire);
  for (;;) {
    int32_t task = next & 0xffff;
    if (task >= (int32_t)(next >> 16 & 0xffff)) return 0;
    Share share = atomic_load_explicit(&pool.share, memory_order_relaxed);
    void* data = atomic_load_explicit(&pool.data, memory_order_relaxed);
    Group group = {NULL, atomic_load_explicit(&pool.tasks, memory_order_relaxed)};
    if (!atomic_compare_exchange_weak_explicit(&of->next, &next, next + 1, memory_order_acq_rel,
                                               memory_order_acquire))
      continue;
    if (share(task, &group, data)) atomic_store_explicit(&pool.failed, 1, memory_order_relaxed);
    return 1;
  }
}

static void do_tasks(int32_t id) {
  int32_t done = 0;
  for (int32_t i = 0; i < pool.threads && i < HELPED; i++) {
    while (do_next(&pool.workers[id])) done++;
    if (++id == pool.threads) id = 0;
  }
  if (done) atomic_fetch_sub_explicit(&pool.left, done, memory_order_release);
}

static void* work(void* argument) {
  Worker* self = argument;
  uint32_t seen = 0;
  for (;;) {
    seen = next_launch(seen);
    if (atomic_load_explicit(&pool.ending, memory_order_acquire)) return NULL;
    do_tasks(self->id);
  }
}

static void announce(void) {
  atomic_fetch_add(&pool.launch, 1);
  if (atomic_load(&pool.sleepers)) wake_all();
}

static int launch(Share share, void* data, int tasks) {
  int alone = atomic_flag_test_and_set_explicit(&pool.busy, memory_order_acquire);
  if (alone || pool.threads < 2 || tasks == 1 || tasks > CUTS * MOST_THREADS) {
    Group group = {NULL, tasks ? tasks : 1}; /* another thread's launch is on, or this is nested */
    int failed = 0;
    for (int32_t task = 0; task < group.tasks; task++) failed |= share(task, &group, data);
    if (!alone) atomic_flag_clear_explicit(&pool.busy, memory_order_release);
    if (failed) TVMFFIErrorSetRaisedFromCStr("RuntimeError", "a kernel failed");
    return failed ? -1 : 0;
  }
  if (!tasks) tasks = CUTS * pool.threads;
  atomic_store_explicit(&pool.share, share, memory_order_relaxed);
  atomic_store_explicit(&pool.data, data, memory_order_relaxed);
  atomic_store_explicit(&pool.tasks, tasks, memory_order_relaxed);
  atomic_store_explicit(&pool.failed, 0, memory_order_relaxed);
  atomic_store_explicit(&pool.left, tasks, memory_order_relaxed);
  uint64_t number = atomic_load_explicit(&pool.launch, memory_order_relaxed) + 1;
  int32_t rest = 0;
  uint64_t from = 0, to = 0;
  for (int32_t i = 0; i < pool.threads; i++, from = to) { /* ARMv7 has no division, nor its library */
    for (rest += tasks; rest >= pool.threads; rest -= pool.threads) to++;
    atomic_store_explicit(&pool.workers[i].next, number << 32 | to << 16 | from,
                          memory_order_release);
  }
  announce();
  do_tasks(0);
  for (uint32_t looks = 1; atomic_load_explicit(&pool.left, memory_order_acquire); looks++)
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
  for (int32_t i = 1; i < pool.threads; i++) pthread_join(pool.workers[i].thread, NULL);
  free(pool.workers);
  pool.workers = NULL;
  pool.threads = 0;
  __TVMBackendParallelLaunch = pool.before;
}

static int start(int32_t threads) {
  Worker* workers = NULL;
  if (posix_memalign((void**)&workers, LINE, threads * sizeof(Worker))) return -1;
  atomic_store(&pool.ending, 0);
  atomic_store(&pool.launch, 0);
  for (int32_t i = 0; i < threads; i++) {
    workers[i].id = i;
    atomic_store(&workers[i].next, 0);
  }
  pool.workers = workers;
  pool.threads = 1;
  pool.before = __TVMBackendParallelLaunch;
  for (int32_t i = 1; i < threads; i++) {
    if (pthread_create(&workers[i].thread, NULL, work, &workers[i])) {
      end();
      return -1;
    }
    pool.threads = i + 1;
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
