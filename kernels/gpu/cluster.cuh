// Clusters of blocks (compute capability 9.0 and later): blocks on neighbouring multiprocessors that
// write to one another's shared memory. A kernel says __cluster_dims__(kClusterBlocks, 1, 1).
//
// A thread that has arrived at the cluster's barrier has released what it stored before; one that has
// waited there sees what all others had released. Between the two it may do what concerns nobody else.
// Every thread of every block arrives and waits, one after the other, and no block may end before all
// stores to it have been waited for.
#pragma once

#include "kernels/gpu/platform.cuh"

namespace hfcore_gpu {

constexpr int kClusterBlocks = 8;  // the most that every such GPU has

// The block's number in its cluster.
__device__ __forceinline__ int cluster_rank() {
#ifdef __CUDACC__
    unsigned rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return static_cast<int>(rank);
#else
    return cuda_on_cpu::cluster_rank();
#endif
}

__device__ __forceinline__ void cluster_arrive() {
#ifdef __CUDACC__
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#else
    cuda_on_cpu::cluster_arrive();
#endif
}

__device__ __forceinline__ void cluster_wait() {
#ifdef __CUDACC__
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
    cuda_on_cpu::cluster_wait();
#endif
}

// 16 bytes to where `own`, an address in this block's shared memory, is in that of block `rank`.
__device__ __forceinline__ void store_remote(uint4* own, int rank, uint4 value) {
#ifdef __CUDACC__
    const unsigned here = static_cast<unsigned>(__cvta_generic_to_shared(own));
    unsigned there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(here), "r"(rank));
    asm volatile("st.shared::cluster.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(there), "r"(value.x),
                 "r"(value.y), "r"(value.z), "r"(value.w)
                 : "memory");
#else
    cuda_on_cpu::store_remote(own, rank, {value.x, value.y, value.z, value.w});
#endif
}

}  // namespace hfcore_gpu
