// Runs model programs: first as the library is, then with every memory order weakened in turn.
#pragma once

#include "model/model.hpp"

namespace model {

struct Program {
    const char* name;
    bool (*run)(rl::test_params&);
    // Also every schedule with at most two preemptions; only where no thread polls.
    bool searched;
};
// What Relacy writes; it must not allocate, because the checker counts the program's allocations.
struct Nowhere : std::streambuf {
    int overflow(int c) override { return c; }
};
template <class T>
bool run(rl::test_params& p) {
    return rl::simulate<T>(p);
}

inline const char* name_of(std::memory_order order) {
    switch (order) {
        case std::memory_order_relaxed: return "relaxed";
        case std::memory_order_acquire: return "acquire";
        case std::memory_order_release: return "release";
        default: return "acq_rel";
    }
}

// Random schedules see loads two values back, the search one.
inline bool passes(const Program& program, rl::iteration_t iterations, std::string* why) {
    rl::iteration_t done[2] = {};
    for (const bool random : {true, false}) {
        if (!random && !program.searched) break;
        Nowhere nowhere;
        std::ostream text(&nowhere);
        rl::test_params params;
        params.output_stream = &text;
        params.progress_stream = &text;
        params.progress_output_period = 1000000;
        params.search_type = random ? rl::random_scheduler_type : rl::fair_context_bound_scheduler_type;
        params.context_bound = 2;
        params.iteration_count = iterations;
        params.execution_depth_limit = 4000;
        if (!program.run(params)) {
            *why = rl::test_result_str(params.test_result);
            return false;
        }
        done[random] = params.stop_iteration;
    }
    *why = "holds in " + std::to_string(done[1]) + " random schedules";
    if (program.searched) *why += " and in all " + std::to_string(done[0]) + " of at most two preemptions";
    return true;
}

// Every program with the library's orders must pass; with an order weakened some program must fail. The number of
// disappointments.
template <class Site, size_t Programs, size_t Sites>
int check(const Program (&programs)[Programs], const char* const (&sites)[Sites], rl::iteration_t iterations) {
    static_assert(Sites == static_cast<size_t>(Site::number_of_sites), "a name for each");
    int bad = 0;
    std::string why;
    for (const Program& program : programs) {
        const bool ok = passes(program, iterations, &why);
        std::printf("%-25s %s\n", program.name, why.c_str());
        std::fflush(stdout);
        bad += !ok;
    }
    if (bad) return bad;
    for (size_t s = 0; s < Sites; ++s) {
        const auto site = static_cast<Site>(s);
        std::vector<std::memory_order> weaker{std::memory_order_relaxed};
        if (order_at(site) == std::memory_order_acq_rel)
            weaker.insert(weaker.end(), {std::memory_order_acquire, std::memory_order_release});
        for (const std::memory_order order : weaker) {
            mutant<Site> = {site, order};
            const char* caught = nullptr;
            for (const Program& program : programs) {
                if (!passes(program, iterations, &why)) {
                    caught = program.name;
                    break;
                }
            }
            std::printf("%-13s %s -> %s: %s%s%s%s\n", sites[s], name_of(order_at(site)), name_of(order),
                        caught ? "caught by \"" : "NOT CAUGHT", caught ? caught : "", caught ? "\": " : "",
                        caught ? why.c_str() : "");
            std::fflush(stdout);
            bad += !caught;
        }
    }
    mutant<Site> = {};
    return bad;
}

}  // namespace model
