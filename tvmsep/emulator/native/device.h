// What the stand-ins for libcuda and libcudart share: memory, the device's facts, errors.
//
// Numbers and names of errors and attributes are those of CUDA's documented interface.
#pragma once
#include <stddef.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

enum {
  SUCCESS = 0,
  INVALID_VALUE = 1,
  OUT_OF_MEMORY = 2,
  INVALID_DEVICE = 101,
  NO_BINARY = 209,
  INVALID_HANDLE = 400,
  NOT_FOUND = 500,
  ILLEGAL_ADDRESS = 700,
  OUT_OF_RESOURCES = 701,
  MISALIGNED_ADDRESS = 716,
  LAUNCH_FAILED = 719,
  CAPTURE_UNSUPPORTED = 900,
};

typedef struct {
  char name[64];
  int capability;  // 87
  int sms, threads_per_sm, blocks_per_sm, shared_per_sm, shared_optin, l2_bytes;
} emu_facts;

EXPORT const emu_facts* emu_device_facts(void);
EXPORT int emu_malloc(void** out, size_t bytes);
EXPORT int emu_free(void* p);
EXPORT int emu_copy(void* to, const void* from, size_t bytes, int to_device, int from_device);
EXPORT void emu_memory(size_t* free_bytes, size_t* total);
// The error of a kernel that went wrong: every later call answers it, as after a device's fault.
EXPORT int emu_sticky(void);
EXPORT void emu_reset(void);
EXPORT const char* emu_error_name(int code, int driver);
EXPORT const char* emu_error_text(int code);
