// A server in the background, found again by its state file, as tvmsep/boards/background.py does it:
// NAME.lock is locked by the process while it lives and holds its id, NAME.json appears when it is
// ready, NAME.log has its words.
#pragma once
#include <string>

namespace tvmsep {

extern int claim_fd;  // of the lock, -1 without one: a forked child must close it

// Fails where another process has it.
void claim(const std::string& state);
void write_state(const std::string& state, int port, const std::string& words);
void drop_state(const std::string& state);

// Starts `words` as a process of its own and prints its state once it is ready; one that runs with
// the same words stays, one with others makes room.
[[noreturn]] void detach(const std::string& state, char** words, const std::string& shown);

// Says that it listens, and ends when its standard input or the process does.
[[noreturn]] void watch(int pid);

// Ends a state file's process and says whether there was one.
[[noreturn]] void end_process(const std::string& state);

}  // namespace tvmsep
