// In place of check.c, in libraries that check nothing.
#include "emulator.h"

void emu_check_begin(void) {}
void emu_check_end(void) {}
