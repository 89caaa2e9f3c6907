// Threads that compute something together: those of a parallel region or, while a program is replayed, those that replay
// it.
//
// A region takes 1.5 µs to begin and to end, and a step of a small model would have 150 of them. A barrier takes 0.2.
#pragma once

#include <immintrin.h>
#include <omp.h>

#include <atomic>
#include <cstdint>
#include <thread>

namespace pipezoo {

// What the threads of a team share. Each number has a line of the caches for itself.
struct Meeting {
    alignas(64) std::atomic<std::int64_t> arrived{0};
    alignas(64) std::atomic<std::int64_t> taken[2]{};
    alignas(64) void* memory = nullptr;
};

// One thread's view of its team. All of them call `begin`, `barrier` and `shared` equally often, in the same order.
class Team {
  public:
    Team(Meeting& meeting, int rank, int size) : meeting_(meeting), rank_(rank), size_(size) {}

    bool is_first() const { return rank_ == 0; }

    // Waits until all are here, and sees what they have written.
    void barrier() {
        static const int kCores = omp_get_num_procs();
        const int patience = size_ > kCores ? 0 : 1000;  // then others may need the core, perhaps those waited for
        met_ += size_;
        meeting_.arrived.fetch_add(1, std::memory_order_acq_rel);
        for (int i = 0; meeting_.arrived.load(std::memory_order_acquire) < met_; ++i)
            i < patience ? _mm_pause() : std::this_thread::yield();
    }

    // Begins a piece of work, which ends at a barrier.
    void begin() {
        ++number_;
        if (is_first()) meeting_.taken[(number_ + 1) % 2].store(0, std::memory_order_relaxed);  // all are done with it
    }

    // Returns 0, 1, 2, ... to whichever thread asks first, from 0 on in each piece of work.
    std::int64_t take() { return meeting_.taken[number_ % 2].fetch_add(1, std::memory_order_relaxed); }

    // Does this thread's part of 0 to count - 1.
    template <typename Work>
    void each(std::int64_t count, Work&& work) const {
        for (std::int64_t i = count * rank_ / size_, end = count * (rank_ + 1) / size_; i < end; ++i) work(i);
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
    std::int64_t met_ = 0, number_ = 0;
};

// The team that this thread is replaying a program with.
inline thread_local Team* replaying = nullptr;

template <typename Work>
void in_parallel(Work&& work) {
    Meeting meeting;
#pragma omp parallel
    {
        Team team(meeting, omp_get_thread_num(), omp_get_num_threads());
        work(team);
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

// Calls `work` with 0 to count - 1, on one thread where that is too little for more of them.
template <typename Work>
void on_team_each(std::int64_t count, bool is_little, Work&& work) {
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
