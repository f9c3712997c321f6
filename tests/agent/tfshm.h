/* The limiter's shared memory, version 2, as a C program declares it; the tests compare every offset with ours. */
#include <stdint.h>

struct slot {
    char uuid[64];
    struct {
        uint32_t up_limit;
        uint64_t mem_limit;
        uint32_t total_cuda_cores;
        uint64_t pod_memory_used;
        uint64_t erl_refill_rate, erl_capacity, erl_current_tokens, erl_last_update; /* bits of a double */
    } info;
    uint32_t is_active;
};

struct state {
    uint32_t discriminant;
    struct {
        struct slot devices[16];
        uint32_t device_count;
        uint64_t last_heartbeat;
        struct {
            uint64_t lock;
            uint64_t values[2048], bitmap[2048];
            uint64_t len;
            uint64_t pid;
        } pids;
        uint8_t padding[512];
    } v2;
};
