// Threads that compute something together: those of a parallel region or, while a program is replayed, those that
// replay it.
//
// A region takes 1.5 µs to begin and to end, and a step of a small model would have 150 of them. A barrier takes 0.2.
//
// All of a team's threads have to run at the same time: where another process wants one of the cores, each of the system's
// time slices that goes to it stops the whole team, and several threads are slower than one. So a team notes when one of
// its threads is late, and for a while the next ones are smaller: the threads that are left have cores of their own.
#pragma once

#include <immintrin.h>
#include <omp.h>
#ifdef __linux__
#include <sched.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>

namespace pipezoo {

// Nanoseconds since some point in the past.
inline std::int64_t now() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

// Threads of all teams that are at work in this process.
inline std::atomic<int> working{0};

// How many threads a team has: as many as OpenMP gives, fewer for a while where too much time was lost with waiting for
// one that was late.
//
// After a pause one thread more is tried. The pause gets longer each time that this fails, and shorter while all goes well:
// beside a busy process the attempts cost 2 %, and 0.3 s after it has ended all threads work again. Teams of several threads
// of Python share this; they may read each other's numbers in any order.
class TeamSize {
  public:
    int current() {
        if (const std::int64_t time = now(); time >= until_) {
            if (left_out_ > 0) {
                --left_out_;
                tried_until_ = time + kWindow;
                lost_ = 0;
            } else {
                pause_ = std::max<std::int64_t>(kShortest, pause_ / 2);
            }
            until_ = time + pause_;
        }
        return std::max(1, omp_get_max_threads() - left_out_);
    }

    // Says that a team of this size has lost so much time.
    void note_lost(int size, std::int64_t nanoseconds) {
        const std::int64_t time = now();
        if (time >= window_end_) {
            lost_ = 0;
            window_end_ = time + kWindow;
        }
        lost_ += nanoseconds;
        if (lost_ < (time < tried_until_ ? kTolerated / 2 : kTolerated)) return;
        left_out_ = omp_get_max_threads() - size + 1;
        pause_ = std::min<std::int64_t>(kLongest, 4 * pause_);
        until_ = time + pause_;
    }

  private:
    static constexpr std::int64_t kShortest = 5'000'000, kLongest = 320'000'000;
    static constexpr std::int64_t kWindow = 40'000'000, kTolerated = 10'000'000;  // a busy process takes more

    std::atomic<int> left_out_{0};
    std::atomic<std::int64_t> until_{0}, pause_{kShortest}, tried_until_{0}, window_end_{0}, lost_{0};
};

inline TeamSize team_size;

// What the threads of a team share. Each number has a line of the caches for itself.
struct Meeting {
    struct alignas(64) Counter {
        std::atomic<int> value{0};
    };
    Counter arrived, sleeping, taken[2];
    alignas(64) void* memory = nullptr;
    std::atomic<bool> waits_long{false};  // somebody does, or did
    std::atomic<int> late_at{0};          // the barrier to which a thread came late: `met_` there, or 0
    std::atomic<std::int64_t> lost{0};    // nanoseconds that all threads have waited for late ones
    std::atomic<std::uint64_t> cores{0};  // that have a thread already, of the first 64

    // Ends the work of all threads at their next barrier.
    void fail() {
        arrived.value.store(kFailed);
        arrived.value.notify_all();
    }

    static constexpr int kFailed = 1 << 30;
};

// Moves this thread to another core where one of its team is on its core already: the system wakes a thread where it is
// woken, and takes milliseconds to find that another core has nothing to do.
inline void leave_shared_core(Meeting& meeting) {
#ifdef __linux__
    const int core = sched_getcpu();
    if (core < 0 || core >= 64) return;
    const std::uint64_t taken = meeting.cores.fetch_or(std::uint64_t(1) << core, std::memory_order_relaxed);
    if (!(taken >> core & 1)) return;
    cpu_set_t allowed, others;
    if (sched_getaffinity(0, sizeof allowed, &allowed)) return;
    others = allowed;
    for (int i = 0; i < 64; ++i)
        if (taken >> i & 1) CPU_CLR(i, &others);
    if (CPU_COUNT(&others) == 0 || sched_setaffinity(0, sizeof others, &others)) return;
    sched_setaffinity(0, sizeof allowed, &allowed);
    meeting.cores.fetch_or(std::uint64_t(1) << (sched_getcpu() & 63), std::memory_order_relaxed);
#else
    (void)meeting;
#endif
}

// Thrown at a barrier where another thread of the team cannot go on.
struct TeamFailed {};

// One thread's view of its team. All of them call `begin`, `barrier` and `shared` equally often, in the same order.
class Team {
  public:
    Team(Meeting& meeting, int rank, int size) : meeting_(meeting), rank_(rank), size_(size), begun_(now()) {}

    bool is_first() const { return rank_ == 0; }

    // Whether a thread came late to a barrier so far. Between two barriers, all threads get the same answer.
    bool is_late() const {
        const int at = meeting_.late_at.load(std::memory_order_relaxed);
        return at && at <= met_;  // others may be one barrier ahead
    }

    // Waits until all are here, and sees what they have written.
    //
    // Who waits long sleeps, for others may need the core, perhaps those that are waited for; at once where there are
    // more threads than cores. To wake somebody is a call of the system, so it is made only where somebody sleeps.
    void barrier() {
        static const int kCores = omp_get_num_procs();
        constexpr int kPauses = 5000;  // about 0.1 ms
        std::atomic<int>&arrived = meeting_.arrived.value, &sleeping = meeting_.sleeping.value;
        met_ += size_;
        if (meeting_.waits_long.load(std::memory_order_relaxed) && !meeting_.late_at.load(std::memory_order_relaxed))
            meeting_.late_at.store(met_, std::memory_order_relaxed);
        if (arrived.fetch_add(1) + 1 == met_) {
            if (sleeping.load()) arrived.notify_all();
            return;
        }
        int left = working.load(std::memory_order_relaxed) > kCores ? 0 : kPauses;
        while (arrived.load(std::memory_order_acquire) < met_ && left-- > 0) _mm_pause();
        if (left < 0) wait_long();
        if (arrived.load(std::memory_order_relaxed) >= Meeting::kFailed) throw TeamFailed{};
    }

    // Begins a piece of work, which ends at a barrier.
    void begin() {
        ++number_;
        begun_ = now();
        if (is_first()) meeting_.taken[(number_ + 1) % 2].value.store(0, std::memory_order_relaxed);  // all are done with it
    }

    // Returns 0, 1, 2, ... to whichever thread asks first, from 0 on in each piece of work.
    std::int64_t take() { return meeting_.taken[number_ % 2].value.fetch_add(1, std::memory_order_relaxed); }

    // Does this thread's part of 0 to count - 1. The first threads have more where it does not divide.
    template <typename Work>
    void each(std::int64_t count, Work&& work) const {
        for (std::int64_t i = first_of(rank_, count), end = first_of(rank_ + 1, count); i < end; ++i) work(i);
    }

    // Does units 0 to count - 1, each in one thread: `work(unit, next)`. The next one is the same thread's; `count` is none.
    //
    // A thread begins with units that are its own, one after the other; of the last quarter it takes one unit at a time,
    // before it begins the one that it has: `work` can fetch it early. Threads are not equally fast on a busy machine.
    template <typename Work>
    void each_in_turn(std::int64_t count, Work&& work) {
        const std::int64_t own = count - count / 4;
        const std::int64_t begin = first_of(rank_, own), end = first_of(rank_ + 1, own);
        const auto taken = [&] { return std::min(count, own + take()); };
        for (std::int64_t unit = begin < end ? begin : taken(), next; unit < count; unit = next) {
            next = unit + 1 < end ? unit + 1 : taken();
            work(unit, next);
        }
    }

    // Returns what `memory` returned to the first thread, which alone calls it.
    template <typename Memory>
    auto shared(Memory&& memory) -> decltype(memory()) {
        if (is_first()) meeting_.memory = memory();
        barrier();
        return static_cast<decltype(memory())>(meeting_.memory);
    }

  private:
    // Where a thread's part of 0 to count - 1 begins.
    std::int64_t first_of(int rank, std::int64_t count) const { return (count * rank + size_ - 1) / size_; }

    // Goes on waiting. Late is who takes more than twice as long as this thread has, and a time slice is about to be lost.
    void wait_long() {
        constexpr std::int64_t kTolerated = 300'000;  // more than the parts of a piece of work differ
        constexpr std::int64_t kToWake = 2'000'000;   // before the first barrier
        std::atomic<int>&arrived = meeting_.arrived.value, &sleeping = meeting_.sleeping.value;
        const std::int64_t came = now(), limit = came + std::max(met_ > size_ ? kTolerated : kToWake, came - begun_);
        while (arrived.load(std::memory_order_acquire) < met_ && now() < limit) _mm_pause();
        meeting_.waits_long.store(true, std::memory_order_relaxed);
        sleeping.fetch_add(1);  // then looks again: it sees that all are here, or the last to come sees that it sleeps
        for (int seen; (seen = arrived.load()) < met_;) arrived.wait(seen);
        sleeping.fetch_sub(1);
        meeting_.lost.fetch_add(now() - came, std::memory_order_relaxed);
    }

    Meeting& meeting_;
    const int rank_, size_;
    std::int64_t begun_;
    int met_ = 0, number_ = 0;
};

// The team that this thread is replaying a program with.
inline thread_local Team* replaying = nullptr;

// Sets it for as long as this lives.
struct Replaying {
    explicit Replaying(Team& team) { replaying = &team; }
    ~Replaying() { replaying = nullptr; }
};

// Calls `work(team)` in each thread of a team, and returns when all are done. Throws what one of them throws.
template <typename Work>
void in_parallel(Work&& work) {
    const int size = team_size.current();
    Meeting meeting;
    if (size == 1) {
        Team team(meeting, 0, 1);
        return work(team);
    }
    std::exception_ptr error;
#pragma omp parallel num_threads(size)
    {
        const int rank = omp_get_thread_num(), others = omp_get_num_threads();
        if (rank == 0) working.fetch_add(others, std::memory_order_relaxed);
        leave_shared_core(meeting);
        try {
            Team team(meeting, rank, others);
            work(team);
            team.barrier();
        } catch (const TeamFailed&) {
        } catch (...) {
#pragma omp critical
            error = std::current_exception();
            meeting.fail();
        }
        if (rank == 0) working.fetch_sub(others, std::memory_order_relaxed);
    }
    if (error) std::rethrow_exception(error);
    if (meeting.late_at.load()) team_size.note_lost(size, meeting.lost.load() / (size - 1));
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
