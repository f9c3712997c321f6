/* A worker behind TensorFusion's limiter, in C: takes tokens by compare-and-swap before each kernel, as the limiter does.

   tfshm_worker layout                                 print every offset
   tfshm_worker run FILE SLOT KERNEL_US COST BUSY_FILE  launch kernels until killed

   A kernel keeps the device busy for KERNEL_US (this process sleeps that long) and costs COST tokens; the time the
   device was busy stands in BUSY_FILE, an unsigned 64-bit count of microseconds. */
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "tfshm.h"

#define SHOW(name, field) printf("%s %zu\n", name, offsetof(struct state, field))

static int layout(void) {
    printf("SIZE %zu\nDEVICE_STRIDE %zu\n", sizeof(struct state), sizeof(struct slot));
    SHOW("DISCRIMINANT", discriminant);
    SHOW("DEVICES", v2.devices);
    SHOW("DEVICE_COUNT", v2.device_count);
    SHOW("HEARTBEAT", v2.last_heartbeat);
    SHOW("PIDS", v2.pids);
    SHOW("slot UUID", v2.devices[0].uuid);
    SHOW("slot UP_LIMIT", v2.devices[0].info.up_limit);
    SHOW("slot MEM_LIMIT", v2.devices[0].info.mem_limit);
    SHOW("slot TOTAL_CUDA_CORES", v2.devices[0].info.total_cuda_cores);
    SHOW("slot POD_MEMORY_USED", v2.devices[0].info.pod_memory_used);
    SHOW("slot REFILL_RATE", v2.devices[0].info.erl_refill_rate);
    SHOW("slot CAPACITY", v2.devices[0].info.erl_capacity);
    SHOW("slot TOKENS", v2.devices[0].info.erl_current_tokens);
    SHOW("slot LAST_UPDATE", v2.devices[0].info.erl_last_update);
    SHOW("slot IS_ACTIVE", v2.devices[0].is_active);
    return 0;
}

static void *map(const char *path, size_t size) {
    int file = open(path, O_RDWR);
    if (file < 0) { perror(path); exit(1); }
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (memory == MAP_FAILED) { perror("mmap"); exit(1); }
    return memory;
}

static void rest(long microseconds) {
    struct timespec left = {microseconds / 1000000, microseconds % 1000000 * 1000};
    nanosleep(&left, NULL);
}

static int take(uint64_t *tokens, double cost) {
    for (;;) {
        uint64_t before = __atomic_load_n(tokens, __ATOMIC_ACQUIRE);
        double level;
        memcpy(&level, &before, sizeof level);
        if (level < cost) return 0;
        double left = level - cost;
        uint64_t after;
        memcpy(&after, &left, sizeof after);
        if (__atomic_compare_exchange_n(tokens, &before, after, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) return 1;
    }
}

int main(int count, char **words) {
    if (count == 2 && !strcmp(words[1], "layout")) return layout();
    if (count != 7) return 2;
    struct state *state = map(words[2], sizeof *state);
    struct slot *slot = &state->v2.devices[atoi(words[3])];
    long kernel_us = atol(words[4]);
    double cost = atof(words[5]);
    uint64_t *busy_us = map(words[6], sizeof *busy_us);
    for (;;) {
        if (__atomic_load_n(&slot->info.up_limit, __ATOMIC_ACQUIRE) < 100)
            while (!take(&slot->info.erl_current_tokens, cost)) rest(10000);
        rest(kernel_us);
        /* The device was busy as long as the kernel takes, however late the sleep came back. */
        __atomic_fetch_add(busy_us, kernel_us, __ATOMIC_RELAXED);
    }
}
