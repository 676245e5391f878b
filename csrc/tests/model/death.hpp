// Death of a model's thread: at a crash point the checker may choose that it goes no further.
#pragma once

#include <cstdint>

namespace model {

inline int mortal = -1;  // the thread that may die
struct Died {};
void step();

// Runs a life; whether it ended early. Nothing may be simulated while the exception is in the air: it belongs to the one
// real thread that all of the model's are.
template <class F>
bool live(F life) {
    try {
        life();
    } catch (const Died&) {
        return true;
    }
    return false;
}

}  // namespace model
