// In place of check.c, in libraries that check nothing.
#include "emulator.h"

void emu_check_begin(void) {}
void emu_check_end(void) {}
void emu_check_access(const void* address, size_t bytes, int write) {
  (void)address, (void)bytes, (void)write;
}
void emu_check_flying(const void* address, size_t bytes, int flying) {
  (void)address, (void)bytes, (void)flying;
}
