// Every block hands its number to the one before it in the cluster, twice; all kernels but the first
// have a fault that the emulation must find.
#include "kernels/gpu/cluster.cuh"

using namespace hfcore_gpu;

namespace {

__device__ __forceinline__ uint4* own_room() {
    HFCORE_DYNAMIC_SHARED(unsigned, shared);
    return reinterpret_cast<uint4*>(shared) + threadIdx.x;
}

__device__ __forceinline__ void start_together() {
    cluster_arrive();
    cluster_wait();
}

__device__ __forceinline__ void hand_on(uint4* room, int rank, unsigned value) {
    store_remote(room, rank % kClusterBlocks, make_uint4(value, value, value, value));
}

__device__ __forceinline__ void write(float* out, int turn, uint4 value) {
    out[(turn * gridDim.x + blockIdx.x) * blockDim.x + threadIdx.x] = static_cast<float>(value.w);
}

}  // namespace

extern "C" __global__ void __cluster_dims__(8, 1, 1) handed_on(float* out) {
    uint4* const room = own_room();
    const unsigned rank = static_cast<unsigned>(cluster_rank());
    start_together();
    for (int turn = 0; turn < 2; ++turn) {
        hand_on(room + turn * blockDim.x, rank + 7, rank + 10 * turn);
        cluster_arrive();
        cluster_wait();
        write(out, turn, room[turn * blockDim.x]);
    }
}

// Reads what others store without a barrier.
extern "C" __global__ void __cluster_dims__(8, 1, 1) no_barrier(float* out) {
    uint4* const room = own_room();
    const unsigned rank = static_cast<unsigned>(cluster_rank());
    start_together();
    for (int turn = 0; turn < 2; ++turn) {
        hand_on(room + turn * blockDim.x, rank + 7, rank + 10 * turn);
        write(out, turn, room[turn * blockDim.x]);
    }
    start_together();
}

// Stores to blocks that may not have started.
extern "C" __global__ void __cluster_dims__(8, 1, 1) no_start(float* out) {
    uint4* const room = own_room();
    const unsigned rank = static_cast<unsigned>(cluster_rank());
    for (int turn = 0; turn < 2; ++turn) {
        hand_on(room + turn * blockDim.x, rank + 7, rank + 10 * turn);
        start_together();
        write(out, turn, room[turn * blockDim.x]);
    }
}

// One buffer for both turns: who is ahead stores before who is behind has read.
extern "C" __global__ void __cluster_dims__(8, 1, 1) one_buffer(float* out) {
    uint4* const room = own_room();
    const unsigned rank = static_cast<unsigned>(cluster_rank());
    start_together();
    for (int turn = 0; turn < 2; ++turn) {
        hand_on(room, rank + 7, rank + 10 * turn);
        cluster_arrive();
        cluster_wait();
        write(out, turn, room[0]);
    }
}

// Stores after it has said that it did.
extern "C" __global__ void __cluster_dims__(8, 1, 1) late_store(float* out) {
    uint4* const room = own_room();
    const unsigned rank = static_cast<unsigned>(cluster_rank());
    start_together();
    for (int turn = 0; turn < 2; ++turn) {
        cluster_arrive();
        hand_on(room + turn * blockDim.x, rank + 7, rank + 10 * turn);
        cluster_wait();
        write(out, turn, room[turn * blockDim.x]);
    }
    start_together();
}

// Reads its room once more after it has said that it was done.
extern "C" __global__ void __cluster_dims__(8, 1, 1) late_read(float* out) {
    uint4* const room = own_room();
    const unsigned rank = static_cast<unsigned>(cluster_rank());
    start_together();
    for (int turn = 0; turn < 2; ++turn) {
        hand_on(room, rank + 7, rank + 10 * turn);
        start_together();
        cluster_arrive();
        write(out, turn, room[0]);
        cluster_wait();
    }
}

// Ends while others still store to it.
extern "C" __global__ void __cluster_dims__(8, 1, 1) early_end(float* out) {
    uint4* const room = own_room();
    const unsigned rank = static_cast<unsigned>(cluster_rank());
    start_together();
    hand_on(room, rank + 7, rank);
    write(out, 0, make_uint4(0, 0, 0, rank));
}

extern "C" __global__ void __cluster_dims__(8, 1, 1) no_such_block(float* out) {
    store_remote(own_room(), kClusterBlocks, make_uint4(0, 0, 0, 0));
    write(out, 0, make_uint4(0, 0, 0, 0));
}

// One thread of one block does not come to the barrier.
extern "C" __global__ void __cluster_dims__(8, 1, 1) missing_thread(float* out) {
    if (cluster_rank() != 2 || threadIdx.x != 3) start_together();
    write(out, 0, make_uint4(0, 0, 0, 0));
}

extern "C" __global__ void __cluster_dims__(8, 1, 1) arrives_twice(float* out) {
    cluster_arrive();
    cluster_arrive();
    write(out, 0, make_uint4(0, 0, 0, 0));
}

extern "C" __global__ void __cluster_dims__(8, 1, 1) never_arrives(float* out) {
    cluster_wait();
    write(out, 0, make_uint4(0, 0, 0, 0));
}
