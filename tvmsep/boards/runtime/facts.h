// What a board says about itself, as tvmsep/measure/facts.py does in Python.
#pragma once
#include <string>

namespace tvmsep {

std::string json_string(const std::string& text);  // as JSON

// A JSON object's members, without its braces: what a tracker is told, or all that is known.
std::string facts(int threads, bool all);

std::string cpu_name();
std::string boot_id();
int cores();  // that this process may use
std::string load(int pid);  // what it and the whole machine have used, as JSON

}  // namespace tvmsep
