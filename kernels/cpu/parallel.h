// A small thread pool for the CPU kernels, and the scratch memory they reuse between calls.
//
// Own threads instead of OpenMP: torch ships its own copy of the OpenMP runtime, and a second
// one in the process spins against it on every switch. A worker with nothing to do stays awake for 50
// microseconds, then it sleeps.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hfcore {

// In loops over memory, elements below which waking a second thread costs more than it saves.
constexpr std::int64_t serial_elements = 32768;

// A borrowed callable (task, worker). Not std::function: its shared template code, compiled for one
// instruction set, could be linked into the kernels of another.
class TaskRef {
public:
    template <class F>
    TaskRef(const F& f)  // NOLINT: implicit on purpose, a lambda is passed as it stands
        : object_(&f), call_([](const void* object, std::int64_t task, int worker) {
              (*static_cast<const F*>(object))(task, worker);
          }) {}
    void operator()(std::int64_t task, int worker) const { call_(object_, task, worker); }

private:
    const void* object_;
    void (*call_)(const void*, std::int64_t, int);
};

// Numbers too small to be normal: as the calling thread treats them, or taken for zero, in and out.
// Gradients that vanish through time or layers end there, and arithmetic on them is a hundred times
// slower on some processors.
enum class Denormals { keep, flush };

// The calling thread's floating-point control word, changed so; and its use for a scope.
std::uint64_t control_word(Denormals denormals);
class WithControlWord {
public:
    explicit WithControlWord(std::uint64_t word);
    ~WithControlWord();
    WithControlWord(const WithControlWord&) = delete;
    WithControlWord& operator=(const WithControlWord&) = delete;

private:
    std::uint64_t before_;
};

// One parallel region. Holds the pool for its lifetime; calls from other threads wait.
class Region {
public:
    explicit Region(int threads, Denormals denormals = Denormals::keep);
    ~Region();
    Region(const Region&) = delete;
    Region& operator=(const Region&) = delete;

    int threads() const { return threads_; }

    // 64-byte aligned memory kept between regions. `worker` is 0 .. threads-1; its contents are
    // whatever the last user left. Throws std::bad_alloc.
    void* scratch(int worker, std::size_t bytes);
    // The same, one buffer for all workers.
    void* shared(std::size_t bytes);

    // work(task, worker) for task = 0 .. tasks-1, in any order on any worker.
    void run(std::int64_t tasks, TaskRef work);
    // Then merge(task, worker) strictly in the order of the tasks, on the worker that ran it:
    // sums come out the same whatever the number of threads.
    void run_ordered(std::int64_t tasks, TaskRef work, TaskRef merge);

private:
    int threads_;
    Denormals denormals_;
};

// A region with nothing but a loop in it.
inline void parallel_for(std::int64_t tasks, int threads, TaskRef work,
                         Denormals denormals = Denormals::keep) {
    Region region(threads, denormals);
    region.run(tasks, work);
}

// Bytes of scratch memory the pool holds now, and a way to give them back to the system.
std::size_t scratch_bytes();
void release_scratch();

}  // namespace hfcore
