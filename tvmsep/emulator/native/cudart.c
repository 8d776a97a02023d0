// A stand-in for libcudart.so.13, as far as TVM's CUDA runtime calls it. Streams run at once.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "device.h"

static _Thread_local int last_error;

static int answer(int code) {
  if (code) last_error = code;
  return code;
}

static int now(void) { return answer(emu_sticky()); }

EXPORT const char* cudaGetErrorName(int code) { return emu_error_name(code, 0); }
EXPORT const char* cudaGetErrorString(int code) { return emu_error_text(code); }
EXPORT int cudaPeekAtLastError(void) { return emu_sticky() ? emu_sticky() : last_error; }
EXPORT int cudaGetLastError(void) {
  int code = cudaPeekAtLastError();
  last_error = 0;
  return code;
}

// --- the device ----------------------------------------------------------------------------------

EXPORT int cudaGetDeviceCount(int* out) { return *out = 1, now(); }
EXPORT int cudaGetDevice(int* out) { return *out = 0, now(); }
EXPORT int cudaSetDevice(int device) { return device ? answer(INVALID_DEVICE) : now(); }
EXPORT int cudaMemGetInfo(size_t* free_bytes, size_t* total) {
  emu_memory(free_bytes, total);
  return now();
}

EXPORT int cudaDeviceGetAttribute(int* out, int attribute, int device) {
  const emu_facts* f = emu_device_facts();
  if (device) return answer(INVALID_DEVICE);
  switch (attribute) {
    case 1: *out = 1024; break;                      // threads of a block
    case 2: case 3: *out = 1024; break;              // its x, y
    case 4: *out = 64; break;                        // its z
    case 5: *out = 2147483647; break;                // grid
    case 6: case 7: *out = 65535; break;
    case 8: *out = 48 * 1024; break;                 // shared memory of a block
    case 9: *out = 64 * 1024; break;                 // constant memory
    case 10: *out = 32; break;                       // warp
    case 12: case 82: *out = 65536; break;           // registers of a block, of a multiprocessor
    case 13: *out = 1000000; break;                  // clock, kHz
    case 16: *out = f->sms; break;
    case 36: *out = 1000000; break;                  // memory clock, kHz
    case 37: *out = 128; break;                      // bus, bits
    case 38: *out = f->l2_bytes; break;
    case 39: *out = f->threads_per_sm; break;
    case 75: *out = f->capability / 10; break;
    case 76: *out = f->capability % 10; break;
    case 81: *out = f->shared_per_sm; break;
    case 97: *out = f->shared_optin; break;
    case 106: *out = f->blocks_per_sm; break;
    default: *out = 0;
  }
  return SUCCESS;
}

// The head of cudaDeviceProp, whose layout is the same in CUDA 12 and 13; the rest is not written.
typedef struct {
  char name[256], uuid[16], luid[8];
  unsigned luid_mask;
  size_t memory, shared;
  int registers, warp;
  size_t pitch;
  int threads, threads_dim[3], grid[3];
} properties;

EXPORT int cudaGetDeviceProperties(properties* out, int device) {
  const emu_facts* f = emu_device_facts();
  size_t free_bytes, total;
  if (device) return answer(INVALID_DEVICE);
  emu_memory(&free_bytes, &total);
  *out = (properties){.memory = total, .shared = 48 * 1024, .registers = 65536, .warp = 32,
                      .pitch = 2147483647, .threads = 1024, .threads_dim = {1024, 1024, 64},
                      .grid = {2147483647, 65535, 65535}};
  snprintf(out->name, sizeof out->name, "%s", f->name);
  return now();
}

// --- memory --------------------------------------------------------------------------------------

EXPORT int cudaMalloc(void** out, size_t bytes) { return answer(emu_malloc(out, bytes)); }
EXPORT int cudaFree(void* p) { return answer(emu_free(p)); }
EXPORT int cudaMallocHost(void** out, size_t bytes) {
  *out = aligned_alloc(256, (bytes + 255) / 256 * 256);
  return *out ? now() : answer(OUT_OF_MEMORY);
}
EXPORT int cudaFreeHost(void* p) { return free(p), now(); }

EXPORT int cudaMemcpyAsync(void* to, const void* from, size_t bytes, int kind, void* stream) {
  (void)stream;
  if (kind < 0 || kind > 4) return answer(INVALID_VALUE);
  int to_device = kind == 1 || kind == 3, from_device = kind == 2 || kind == 3;
  return answer(emu_copy(to, from, bytes, to_device, from_device));
}
EXPORT int cudaMemcpyPeerAsync(void* to, int to_device, const void* from, int from_device,
                               size_t bytes, void* stream) {
  (void)stream;
  if (to_device || from_device) return answer(INVALID_DEVICE);
  return answer(emu_copy(to, from, bytes, 1, 1));
}

// --- streams and events --------------------------------------------------------------------------

EXPORT int cudaStreamCreate(void** out) {
  *out = malloc(1);
  return *out ? now() : answer(OUT_OF_MEMORY);
}
EXPORT int cudaStreamCreateWithFlags(void** out, unsigned flags) {
  (void)flags;
  return cudaStreamCreate(out);
}
EXPORT int cudaStreamDestroy(void* stream) { return free(stream), now(); }
EXPORT int cudaStreamSynchronize(void* stream) { return (void)stream, now(); }
EXPORT int cudaStreamWaitEvent(void* stream, void* event, unsigned flags) {
  return (void)stream, (void)event, (void)flags, now();
}

typedef struct timespec event;

EXPORT int cudaEventCreate(event** out) {
  *out = calloc(1, sizeof **out);
  return *out ? now() : answer(OUT_OF_MEMORY);
}
EXPORT int cudaEventDestroy(event* e) { return free(e), now(); }
EXPORT int cudaEventRecord(event* e, void* stream) {
  (void)stream;
  if (!e) return answer(INVALID_HANDLE);
  clock_gettime(CLOCK_MONOTONIC, e);
  return now();
}
EXPORT int cudaEventSynchronize(event* e) { return e ? now() : answer(INVALID_HANDLE); }
EXPORT int cudaEventElapsedTime(float* ms, const event* from, const event* to) {
  if (!from || !to || !from->tv_sec || !to->tv_sec) return answer(INVALID_HANDLE);
  *ms = (float)((double)(to->tv_sec - from->tv_sec) * 1e3 +
                (double)(to->tv_nsec - from->tv_nsec) * 1e-6);
  return now();
}

// --- graphs: refused, since what a launch reads is not copied --------------------------------------

EXPORT int cudaStreamBeginCapture(void) { return answer(CAPTURE_UNSUPPORTED); }
EXPORT int cudaStreamEndCapture(void) { return answer(CAPTURE_UNSUPPORTED); }
EXPORT int cudaGraphInstantiate(void) { return answer(CAPTURE_UNSUPPORTED); }
EXPORT int cudaGraphLaunch(void) { return answer(CAPTURE_UNSUPPORTED); }
EXPORT int cudaGraphExecDestroy(void) { return SUCCESS; }
EXPORT int cudaGraphDestroy(void) { return SUCCESS; }
