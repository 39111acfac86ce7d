#include "kernels/cpu/parallel.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace hfcore {
namespace {

// The bits that take denormals for zero. The control word belongs to a thread: workers take over the
// caller's, so that results do not depend on how many there are.
#if defined(__SSE__)
constexpr std::uint64_t flush_bits = 0x8040;  // FTZ, DAZ
std::uint64_t control() { return _mm_getcsr(); }
void set_control(std::uint64_t word) { _mm_setcsr(static_cast<unsigned>(word)); }
#elif defined(__aarch64__)
constexpr std::uint64_t flush_bits = std::uint64_t{1} << 24;  // FZ
std::uint64_t control() {
    std::uint64_t word;
    asm volatile("mrs %0, fpcr" : "=r"(word));
    return word;
}
void set_control(std::uint64_t word) { asm volatile("msr fpcr, %0" : : "r"(word)); }
#else
constexpr std::uint64_t flush_bits = 0;
std::uint64_t control() { return 0; }
void set_control(std::uint64_t) {}
#endif

constexpr std::size_t alignment = 64;

class Buffer {
public:
    Buffer() = default;
    Buffer(Buffer&& other) noexcept : data_(other.data_), bytes_(other.bytes_) {
        other.data_ = nullptr;
        other.bytes_ = 0;
    }
    ~Buffer() { std::free(data_); }

    void* grow(std::size_t bytes) {
        if (bytes > bytes_) {
            clear();
            bytes = (bytes + alignment - 1) / alignment * alignment;
            data_ = std::aligned_alloc(alignment, bytes);
            if (data_ == nullptr) throw std::bad_alloc();
            bytes_ = bytes;
        }
        return data_;
    }
    void clear() {
        std::free(data_);
        data_ = nullptr;
        bytes_ = 0;
    }
    std::size_t bytes() const { return bytes_; }

private:
    void* data_ = nullptr;
    std::size_t bytes_ = 0;
};

// How long a thread that waits looks again and again before it sleeps. Ops follow each other within
// some ten microseconds, and waking a thread takes as long as a small product.
constexpr std::chrono::microseconds patience{50};

void pause() {
#if defined(__SSE__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Whether `met` came true within the patience.
template <class F>
bool soon(const F& met) {
    const auto end = std::chrono::steady_clock::now() + patience;
    do {
        for (int i = 0; i < 16; ++i) {
            if (met()) return true;
            pause();
        }
    } while (std::chrono::steady_clock::now() < end);
    return met();
}

// Workers 1 .. n-1 are threads; worker 0 is whoever calls.
class Pool {
public:
    std::mutex in_use;
    std::vector<Buffer> scratch;
    Buffer shared;

    // Starts what is missing of workers 0 .. threads-1; gives how many of them there are. A system
    // that lends no more threads slows a call down, it does not fail it.
    int prepare(int threads) {
        if (static_cast<int>(scratch.size()) < threads) scratch.resize(threads);
        crew_ = threads;
        try {
            while (static_cast<int>(workers_.size()) + 1 < threads) {
                const int worker = static_cast<int>(workers_.size()) + 1;
                workers_.emplace_back([this, worker, seen = call_.load()] { serve(worker, seen); });
            }
        } catch (const std::system_error&) {
            return static_cast<int>(workers_.size()) + 1;
        }
        return threads;
    }

    void run(int threads, const std::function<void(int)>& body) {
        if (threads == 1) {
            body(0);
            return;
        }
        error_ = nullptr;
        body_ = &body;
        pending_ = threads - 1;
        call_ = (call_ / most_workers + 1) * most_workers + static_cast<std::uint64_t>(threads);
        if (sleeping_ > 0) {
            std::lock_guard<std::mutex> lock(mutex_);
            wake_.notify_all();
        }
        guarded(body, 0);
        const auto finished = [this] { return pending_ == 0; };
        if (!soon(finished)) {
            std::unique_lock<std::mutex> lock(mutex_);
            caller_sleeps_ = true;
            done_.wait(lock, finished);
            caller_sleeps_ = false;
        }
        if (error_) std::rethrow_exception(error_);
    }

private:
    // A call's number and how many work on it, in one word: a worker that is not among them looks at
    // nothing else, as the next call may already be written.
    static constexpr std::uint64_t most_workers = 1024;

    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable wake_, done_;
    // Each on a cache line of its own: all threads look at the one while they write the other.
    alignas(64) std::atomic<std::uint64_t> call_{0};
    alignas(64) std::atomic<int> pending_{0};
    alignas(64) std::atomic<int> sleeping_{0};
    std::atomic<int> crew_{0};  // workers of the region; others need not wait awake for its calls
    std::atomic<bool> caller_sleeps_{false};
    const std::function<void(int)>* body_ = nullptr;
    std::exception_ptr error_;

    void guarded(const std::function<void(int)>& body, int worker) {
        try {
            body(worker);
        } catch (...) {
            std::lock_guard<std::mutex> lock(mutex_);
            if (!error_) error_ = std::current_exception();
        }
    }

    // Each side writes its own word before it reads the other's, in one order for all: whoever goes
    // to sleep is seen, or sees that there is no need to.
    void serve(int worker, std::uint64_t seen) {
        for (;;) {
            const auto called = [&] { return call_ != seen; };
            if (worker >= crew_ || !soon(called)) {
                std::unique_lock<std::mutex> lock(mutex_);
                ++sleeping_;
                wake_.wait(lock, called);
                --sleeping_;
            }
            seen = call_;
            if (worker >= static_cast<int>(seen % most_workers)) continue;
            guarded(*body_, worker);
            if (--pending_ == 0 && caller_sleeps_) {
                std::lock_guard<std::mutex> lock(mutex_);
                done_.notify_one();
            }
        }
    }
};

// The pool is never destroyed: its threads may outlive static destructors. A forked child, which
// has none of them, starts a fresh one; no lock here, as a lock held at the fork stays held there.
std::atomic<Pool*> current{nullptr};
[[maybe_unused]] const int fork_handler =
    pthread_atfork(nullptr, nullptr, [] { current.store(nullptr); });

Pool& pool() {
    Pool* p = current.load();
    if (p == nullptr) {
        auto fresh = std::make_unique<Pool>();
        if (current.compare_exchange_strong(p, fresh.get())) p = fresh.release();
    }
    return *p;
}

}  // namespace

std::uint64_t control_word(Denormals denormals) {
    return denormals == Denormals::flush ? control() | flush_bits : control();
}

WithControlWord::WithControlWord(std::uint64_t word) : before_(control()) { set_control(word); }

WithControlWord::~WithControlWord() { set_control(before_); }

Region::Region(int threads, Denormals denormals)
    : threads_(std::clamp(threads, 1, 256)), denormals_(denormals) {
    Pool& p = pool();
    p.in_use.lock();
    try {
        threads_ = p.prepare(threads_);
    } catch (...) {
        p.in_use.unlock();
        throw;
    }
}

Region::~Region() { pool().in_use.unlock(); }

void* Region::scratch(int worker, std::size_t bytes) { return pool().scratch[worker].grow(bytes); }

void* Region::shared(std::size_t bytes) { return pool().shared.grow(bytes); }

void Region::run(std::int64_t tasks, TaskRef work) {
    const int threads = static_cast<int>(std::clamp<std::int64_t>(tasks, 1, threads_));
    std::atomic<std::int64_t> next{0};
    const std::uint64_t word = control_word(denormals_);
    pool().run(threads, [&](int worker) {
        const WithControlWord guard(word);
        for (std::int64_t task; (task = next.fetch_add(1)) < tasks;) work(task, worker);
    });
}

void Region::run_ordered(std::int64_t tasks, TaskRef work, TaskRef merge) {
    std::mutex mutex;
    std::condition_variable turn;
    std::int64_t merged = 0;
    bool failed = false;
    run(tasks, [&](std::int64_t task, int worker) {
        try {
            work(task, worker);
            std::unique_lock<std::mutex> lock(mutex);
            turn.wait(lock, [&] { return merged == task || failed; });
            if (failed) return;
            merge(task, worker);
            ++merged;
        } catch (...) {
            std::lock_guard<std::mutex> lock(mutex);
            failed = true;
            turn.notify_all();
            throw;
        }
        turn.notify_all();
    });
}

std::size_t scratch_bytes() {
    Pool& p = pool();
    std::lock_guard<std::mutex> lock(p.in_use);
    std::size_t bytes = p.shared.bytes();
    for (const Buffer& b : p.scratch) bytes += b.bytes();
    return bytes;
}

void release_scratch() {
    Pool& p = pool();
    std::lock_guard<std::mutex> lock(p.in_use);
    p.shared.clear();
    for (Buffer& b : p.scratch) b.clear();
}

}  // namespace hfcore
