// Threads that compute something together: those of a parallel region or, while a program is replayed, those that
// replay it.
//
// A region takes 1.5 µs to begin and to end, and a step of a small model would have 150 of them. A barrier takes 0.2.
#pragma once

#include <immintrin.h>
#include <omp.h>

#include <atomic>
#include <cstdint>

namespace pipezoo {

// Threads of all teams that are at work in this process.
inline std::atomic<int> working{0};

// What the threads of a team share. Each number has a line of the caches for itself.
struct Meeting {
    struct alignas(64) Counter {
        std::atomic<int> value{0};
    };
    Counter arrived, sleeping, taken[2];
    alignas(64) void* memory = nullptr;
};

// One thread's view of its team. All of them call `begin`, `barrier` and `shared` equally often, in the same order.
class Team {
  public:
    Team(Meeting& meeting, int rank, int size) : meeting_(meeting), rank_(rank), size_(size) {}

    bool is_first() const { return rank_ == 0; }

    // Waits until all are here, and sees what they have written.
    //
    // Who waits long sleeps, for others may need the core, perhaps those that are waited for; at once where there are
    // more threads than cores. To wake somebody is a call of the system, so it is made only where somebody sleeps.
    void barrier() {
        static const int kCores = omp_get_num_procs();
        constexpr int kPauses = 5000;  // about 0.1 ms
        std::atomic<int>&arrived = meeting_.arrived.value, &sleeping = meeting_.sleeping.value;
        met_ += size_;
        if (arrived.fetch_add(1) + 1 == met_) {
            if (sleeping.load()) arrived.notify_all();
            return;
        }
        int left = working.load(std::memory_order_relaxed) > kCores ? 0 : kPauses;
        while (arrived.load(std::memory_order_acquire) < met_ && left-- > 0) _mm_pause();
        if (left >= 0) return;
        sleeping.fetch_add(1);  // then looks again: it sees that all are here, or the last to come sees that it sleeps
        for (int seen; (seen = arrived.load()) < met_;) arrived.wait(seen);
        sleeping.fetch_sub(1);
    }

    // Begins a piece of work, which ends at a barrier.
    void begin() {
        ++number_;
        if (is_first()) meeting_.taken[(number_ + 1) % 2].value.store(0, std::memory_order_relaxed);  // all are done with it
    }

    // Returns 0, 1, 2, ... to whichever thread asks first, from 0 on in each piece of work.
    std::int64_t take() { return meeting_.taken[number_ % 2].value.fetch_add(1, std::memory_order_relaxed); }

    // Does this thread's part of 0 to count - 1. The first threads have more where it does not divide.
    template <typename Work>
    void each(std::int64_t count, Work&& work) const {
        const auto begin = [&](int rank) { return (count * rank + size_ - 1) / size_; };
        for (std::int64_t i = begin(rank_), end = begin(rank_ + 1); i < end; ++i) work(i);
    }

    // Returns what `memory` returned to the first thread, which alone calls it.
    template <typename Memory>
    auto shared(Memory&& memory) -> decltype(memory()) {
        if (is_first()) meeting_.memory = memory();
        barrier();
        return static_cast<decltype(memory())>(meeting_.memory);
    }

  private:
    Meeting& meeting_;
    const int rank_, size_;
    int met_ = 0, number_ = 0;
};

// The team that this thread is replaying a program with.
inline thread_local Team* replaying = nullptr;

template <typename Work>
void in_parallel(Work&& work) {
    Meeting meeting;
#pragma omp parallel
    {
        const int rank = omp_get_thread_num(), size = omp_get_num_threads();
        if (rank == 0) working.fetch_add(size, std::memory_order_relaxed);
        Team team(meeting, rank, size);
        work(team);
        if (rank == 0) working.fetch_sub(size, std::memory_order_relaxed);
    }
}

// Calls `work(team)` in each thread, and returns when all are done.
template <typename Work>
void on_team(Work&& work) {
    if (!replaying) return in_parallel(work);
    replaying->begin();
    work(*replaying);
    replaying->barrier();
}

// Calls `work` with 0 to count - 1, which is about as much work as to read and write so many numbers.
//
// One thread does it all where others would cost more than they save: to wake them costs more than to meet them.
template <typename Work>
void on_team_each(std::int64_t count, std::int64_t numbers, Work&& work) {
    const bool is_little = numbers <= (replaying ? 1024 : 16384);
    const auto on_one = [&] {
        for (std::int64_t i = 0; i < count; ++i) work(i);
    };
    if (is_little && !replaying) return on_one();
    on_team([&](Team& team) {
        if (!is_little)
            team.each(count, work);
        else if (team.is_first())
            on_one();
    });
}

}  // namespace pipezoo
